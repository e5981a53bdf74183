"""The pure core: a composed config and a few traced numbers become init, train and eval steps.

Every float of the config that the program can take as an input is a *hyperparameter*: a traced
scalar under its dotted path. The functions here build their objects inside the trace with these
scalars in place, so that one compiled program serves every value, and `jax.vmap` over
(hyperparameters, key, state) trains a population.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import build, leaves, locate, place
from experiments.data.augment import Pipeline, resize
from experiments.data.dataset import Spec

Tree = Any
Hparams = Mapping[str, Any]

TRACED_GROUPS = ("model", "objective", "loss", "optim", "schedule", "init")


class State(NamedTuple):
    """Everything that training changes; a run is saved and resumed by it."""

    params: Tree
    model_state: Tree  # batch statistics
    opt_state: Tree
    ema: Tree  # averages of (params, model_state), or None
    step: jax.Array | np.int32  # batches seen
    diverged_at: jax.Array | np.int32  # first step whose loss or gradient was not finite, or -1


def stream(root: jax.Array, name: str, step: Any = 0) -> jax.Array:
    """The key of a named stream at a step; nothing random needs any other state."""
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def compiler_options() -> dict[str, str | bool] | None:
    """How XLA should compile for the device at hand.

    On CPU LLVM's first level of optimisation gives the same step times as the default (VGG-16 0.52
    s, LeNet-5 7.0 ms, MLP 0.52 ms either way) and compiles VGG-16 in 7.0 instead of 9.1 s, an
    initializer in 0.18 instead of 0.43 s.
    """
    return {"xla_backend_optimization_level": "1"} if jax.default_backend() == "cpu" else None


def hyperparameters(config: Mapping[str, Any]) -> dict[str, float]:
    """The floats of a config that may be traced, by dotted path.

    A float that is exactly 0 switches a feature off and stays in the program as that.
    """
    found = {}
    for path, value in leaves({group: config.get(group) for group in TRACED_GROUPS}):
        if isinstance(value, float) and value != 0 and math.isfinite(value):
            found[path] = value
    augment = (config.get("data") or {}).get("augment")
    for path, value in leaves(augment, "data.augment"):
        if isinstance(value, float) and value != 0:
            found[path] = value
    return found


class Experiment:
    """Model, objective and optimizer of one static configuration as pure functions.

    Args:
      config: the composed config as plain dicts.
      spec: shapes of the data; pipeline: from stored examples to model inputs.
      steps_per_epoch, total_steps: what schedules are measured in.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        spec: Spec,
        pipeline: Pipeline,
        steps_per_epoch: int,
        total_steps: int,
    ):
        self.config = config
        self.spec, self.pipeline = spec, pipeline
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.precision = jnp.dtype(
            {"fp32": "float32", "bf16": "bfloat16"}[config["trainer"]["precision"]]
        )
        self.skip_bad_updates = config["trainer"]["on_nan"] == "skip"
        self.input_shape = self._model_input_shape()

    # ------------------------------------------------------------------ objects, inside a trace

    def model(self, hparams: Hparams, kernel_init: Any) -> nnx.Module:
        """A new model; `kernel_init` fills its weights."""
        return build(
            place(self.config["model"], hparams, "model"),
            input_shape=self.input_shape,
            num_classes=self.spec.num_classes,
            kernel_init=kernel_init,
            rngs=nnx.Rngs(params=jax.random.key(0)),
        )

    def objective(self, hparams: Hparams) -> Any:
        """What is optimised."""
        config = place(dict(self.config), hparams)
        return build(
            config["objective"],
            loss=build(config["loss"]),
            num_classes=self.spec.num_classes,
        )

    def optimizer(self, hparams: Hparams) -> Any:
        """How it is optimised."""
        return build(place(self.config["optim"], hparams, "optim"))

    def learning_rate_factor(self, hparams: Hparams, step: Any) -> jax.Array:
        """The schedule's factor at a step."""
        schedule = build(place(self.config["schedule"], hparams, "schedule"))
        return schedule(step, self.steps_per_epoch, self.total_steps)

    # ------------------------------------------------------------------ pure functions

    def init(self, hparams: Hparams, key: jax.Array) -> State:
        """The state at step 0.

        Meant to run outside of jit: each distinct weight shape compiles once, which takes a
        fraction of the time that one program of all layers takes.
        """
        keys = nnx.Rngs(params=stream(key, "init"))

        @functools.partial(jax.jit, static_argnums=(2, 3), compiler_options=compiler_options())
        def sample(key, hparams, shape, dtype):
            return build(place(self.config["init"], hparams, "init"))(key, shape, dtype)

        def kernel_init(_key, shape, dtype):
            return sample(keys.params(), hparams, tuple(shape), dtype)

        return self._initial(hparams, kernel_init)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], hparams: Hparams, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update. Returns the new state and scalar metrics of this step.

        A step whose loss or gradient is not finite changes nothing but the step count. With
        `trainer.on_nan=stop` no later step changes anything either.
        """
        optimizer = self.optimizer(hparams)
        objective = self.objective(hparams)
        batch = self.prepare(batch, hparams, stream(key, "augment", state.step), train=True)
        dropout = stream(key, "dropout", state.step)

        def loss_of(params):
            model = self._with(hparams, params, state.model_state, train=True)
            values, _ = objective(model, batch, nnx.Rngs(dropout=dropout))
            means = {name: jnp.mean(value) for name, value in values.items()}
            return means["loss"], (means, variables(model)[1])

        (loss, (metrics, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        factor = self.learning_rate_factor(hparams, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, factor)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optimizer.average(ema, (params, model_state), state.step)
        grad_norm = optax.tree.norm(grads)
        metrics |= {
            "learning_rate": jnp.asarray(optimizer.learning_rate * factor, jnp.float32),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        first = (state.diverged_at < 0) & ~finite
        diverged_at = jnp.where(first, state.step, state.diverged_at)
        accept = finite if self.skip_bad_updates else finite & (state.diverged_at < 0)
        new = State(params, model_state, opt_state, ema, state.step, diverged_at)
        old = state._replace(diverged_at=diverged_at)
        kept = jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
        return kept._replace(step=state.step + 1), metrics

    def eval_step(
        self, params: Tree, model_state: Tree, batch: Mapping[str, jax.Array], hparams: Hparams
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Sums over the batch of each metric, and the predictions example by example.

        Examples whose `mask` [batch] is 0 are padding; the sum `count` is Σ mask.
        """
        mask = batch["mask"]
        inputs = {name: value for name, value in batch.items() if name != "mask"}
        inputs = self.prepare(inputs, hparams, jax.random.key(0), train=False)
        model = self._with(hparams, params, model_state, train=False)
        objective = self.objective(hparams)
        values, outputs = objective(model, inputs, None)
        # a padded example counts for nothing, even where the model makes a NaN of it
        sums = {k: jnp.sum(jnp.where(mask > 0, v * mask, 0)) for k, v in values.items()}
        return sums | {"count": jnp.sum(mask)}, objective.predictions(outputs)

    def prepare(
        self, batch: Mapping[str, jax.Array], hparams: Hparams, key: jax.Array, *, train: bool
    ) -> dict[str, jax.Array]:
        """Normalised, augmented (in training) and, for a small image, resized inputs."""
        augment = build(place(self.config["data"]["augment"], hparams, "data.augment"))
        pipeline = dataclasses.replace(self.pipeline, augment=augment)
        batch = pipeline(batch, key, train=train)
        image = batch["image"]
        if image.shape[1:] != self.input_shape:
            image = resize(image, self.input_shape[:2])
        return batch | {"image": image.astype(self.precision)}

    def weights(self, state: State) -> tuple[Tree, Tree]:
        """(params, model_state) to evaluate with: the averages where there are any."""
        return (state.params, state.model_state) if state.ema is None else state.ema

    def abstract_state(self, hparams: Hparams) -> State:
        """Shapes and dtypes of the state; nothing is allocated or compiled."""
        return jax.eval_shape(lambda h: self._initial(h, jax.nn.initializers.zeros), hparams)

    # ------------------------------------------------------------------ inner workings

    def _with(self, hparams: Hparams, params: Tree, model_state: Tree, *, train: bool):
        """The model with these variables, its floats in the run's precision."""
        model = self.model(hparams, lambda key, shape, dtype: jnp.zeros(shape, dtype))
        cast = jax.tree.map(
            lambda a: a.astype(self.precision) if a.dtype == jnp.float32 else a, params
        )
        nnx.update(model, nnx.State(_merge(cast, model_state)))
        model.train() if train else model.eval()
        return model

    def _initial(self, hparams: Hparams, kernel_init: Any) -> State:
        params, model_state = variables(self.model(hparams, kernel_init))
        averaged = self.config["optim"]["ema_decay"] is not None

        @jax.jit
        def rest(weights, hparams):
            opt_state = self.optimizer(hparams).init(weights[0])
            return opt_state, jax.tree.map(jnp.copy, weights) if averaged else None

        opt_state, ema = rest((params, model_state), hparams)
        return State(params, model_state, opt_state, ema, np.int32(0), np.int32(-1))

    def _model_input_shape(self) -> tuple[int, ...]:
        """The data's shape, with small images brought up to the model's `minimum_size`."""
        minimum = getattr(locate(self.config["model"]["_target_"]), "minimum_size", 0)
        shape = tuple(self.spec.input_shape)
        smallest = min(shape[:2])
        if len(shape) != 3 or smallest >= minimum:
            return shape
        scale = minimum / smallest
        return (*(math.ceil(n * scale) for n in shape[:2]), shape[2])


def variables(model: nnx.Module) -> tuple[Tree, Tree]:
    """(parameters, everything else that is a variable) of a model as plain nested dicts."""
    params = nnx.state(model, nnx.Param)
    rest = nnx.state(model, nnx.All(nnx.Variable, nnx.Not(nnx.Param)))
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def count_parameters(params: Tree) -> int:
    """The number of trainable scalars."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _merge(a: Tree, b: Tree) -> Tree:
    """Two nested dicts with disjoint leaves as one."""
    merged = dict(a)
    for key, value in b.items():
        both = key in merged and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
