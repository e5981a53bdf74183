"""The pure core: a composed config and a few traced numbers become init, train and eval steps.

Every float of the config that the program can take as an input is a *hyperparameter*: a traced
scalar under its dotted path. The functions here build their objects inside the trace with these
scalars in place, so that one compiled program serves every value, and `jax.vmap` over
(hyperparameters, key, state) trains a population.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.config import build, hyperparameters, locate, objective_of, place
from experiments.core.input_shape import check_target, model_input_shape
from experiments.core.metrics import metrics_of, scalars_of, sums_of
from experiments.core.optim import PartitionedOptimizer
from experiments.core.params import gathered, if_measured, merged, norm, only_if, variables
from experiments.core.rng import initial_keys, reseed, stream, streams
from experiments.core.schedules import SCALE, epochs
from experiments.core.transfer import check_frozen, fitted, freeze_statistics, split
from experiments.data.dataset import Spec, model_input
from experiments.data.pipeline import Averaged, resize, scaled
from experiments.errors import UserError
from experiments.objectives.losses import with_class_weights
from experiments.objectives.units import in_units
from experiments.ops.remat import recomputing

Tree = Any
Hparams = Mapping[str, Any]

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
PARTS = {"discriminator": "discriminator_optim"}  # parts of a model with an optimizer of their own


class State(NamedTuple):
    """Everything that training changes; a run is saved and resumed by it."""

    params: Tree
    model_state: Tree  # batch statistics
    opt_state: Tree
    ema: Tree  # averages of (params, model_state), or None
    step: jax.Array | np.int32  # batches seen
    diverged_at: jax.Array | np.int32  # first step with a loss or gradient not finite, or -1


class Experiment:
    """Model, objective and optimizer of one static configuration as pure functions.

    Args:
      config: the composed config as plain dicts.
      spec: shapes of the data; pipeline: from stored examples to model inputs.
      steps_per_epoch, total_steps: what schedules are measured in.
      examples: gives stored examples, for models with state that follows from the data.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        spec: Spec,
        pipeline: Any,
        steps_per_epoch: int,
        total_steps: int,
        examples: Callable[[], Mapping[str, Any]] | None = None,
    ):
        # where the data are not at hand, any numbers in the place of `balanced` will do
        config = with_class_weights(config, lambda: [1] * spec.num_classes)
        self.config = config
        self.spec, self.pipeline = spec, pipeline
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.examples = examples
        self.precision = jnp.dtype(PRECISIONS[config["trainer"]["precision"]])
        self.units = config["trainer"]["units"]
        self.remat = config["trainer"]["remat"]
        self.skip_bad_updates = config["trainer"]["on_nan"] == "skip"
        check_target(config, spec)
        self.input_shape = model_input_shape(config, spec)
        pixels = getattr(locate(config["objective"]["_target_"]), "pixels", None)
        if pixels is not None and len(spec.input_shape) == 3:
            self.pipeline = scaled(pipeline, *pixels, channels=spec.input_shape[-1])
        self.tta = (config.get("eval") or {}).get("tta")
        freeze = config.get("freeze") or []
        self.frozen = [freeze] if isinstance(freeze, str) else freeze
        self.step = jax.jit(self.train_step)  # traced once for all who need its shapes or call it

    def model(self, hparams: Hparams, kernel_init: Any, key: Any = None) -> nnx.Module:
        """Return a new model, its weights by `kernel_init`; `key` is for models from elsewhere."""
        if self.config["model"]["_target_"].startswith("experiments."):
            # layers of this package leave drawing to `kernel_init`: each key would be a program
            rngs: Any = types.SimpleNamespace(params=lambda: None)
        else:
            rngs = streams(jax.random.key(0) if key is None else key)
        return build(
            place(self.config["model"], hparams, "model"),
            input_shape=self.input_shape,
            num_classes=self.spec.num_classes,
            kernel_init=kernel_init,
            rngs=rngs,
        )

    def objective(self, hparams: Hparams) -> Any:
        """Return the objective."""
        return objective_of(place(dict(self.config), hparams), self.spec.num_classes)

    def optimizer(self, hparams: Hparams, due: Mapping[str, jax.Array] | None = None) -> Any:
        """Return the optimizer; `due` says which parts a step trains, if not all of them.

        Raises:
          UserError: a part is trained at some steps only, and there is one optimizer for all.
        """
        rest = build(place(self.config["optim"], hparams, "optim"))
        own = {
            part: build(place(self.config[group], hparams, group))
            for part, group in PARTS.items()
            if self.config.get(group)
        }
        if own:
            return PartitionedOptimizer(own, rest, due or {})
        if due:
            raise UserError(
                f"{' and '.join(due)} would be trained at some steps only, which takes an "
                "optimizer for each part: add optim@discriminator_optim=gan"
            )
        return rest

    def learning_rate_factor(self, hparams: Hparams, step: Any, total: int) -> jax.Array:
        """Return the schedule's factor at a step of so many in all."""
        schedule = build(place(self.config["schedule"], hparams, "schedule"))
        return schedule(step, self.steps_per_epoch, total) * hparams.get(SCALE, 1.0)

    def init_weights(
        self, hparams: Hparams, key: jax.Array, found: Mapping[str, Any] | None = None
    ) -> tuple[Tree, Tree]:
        """Return new (params, model_state), drawn on the host; not for use inside a trace.

        Arrays in `found` take the place of new ones of their name and shape.
        """
        numbers = {name: float(value) for name, value in hparams.items()}
        initializer = build(place(self.config["init"], numbers, "init"))
        keys = initial_keys(key)

        def kernel_init(_: Any, shape: Any, dtype: Any) -> Any:
            return initializer(next(keys), tuple(shape), dtype)

        weights = variables(self.model(hparams, kernel_init, key))
        found = {**self.state_of_data, **(found or {})}
        params, model_state = (fitted(found, tree) for tree in weights)
        check_frozen(params, self.frozen)
        return params, model_state

    def begin(self, weights: tuple[Tree, Tree], hparams: Hparams) -> State:
        """Return the state at step 0 with these weights; pure."""
        averaged = self.config["optim"]["ema_decay"] is not None
        opt_state = self.optimizer(hparams).init(split(weights[0], self.frozen)[0])
        ema = jax.tree.map(jnp.copy, weights) if averaged else None
        return State(*weights, opt_state, ema, jnp.int32(0), jnp.int32(-1))

    def init(self, hparams: Hparams, key: jax.Array) -> State:
        """Return the state at step 0 with new weights."""
        return self.begin(self.init_weights(hparams, key), hparams)

    def train_step(
        self,
        state: State,
        batch: Mapping[str, jax.Array],
        hparams: Hparams,
        key: jax.Array,
        measured: jax.Array | bool = True,
    ) -> tuple[State, dict[str, jax.Array]]:
        """Update the state once; return the new one and scalar metrics of this step.

        A step with a loss or gradient that is not finite changes only the step count. With
        `trainer.on_nan=stop` no later step changes anything either. Unless it is `measured` the
        norms of parameters and update are NaN.
        """
        objective = self.objective(hparams)
        rhythm = getattr(objective, "update_every", {})
        due = {part: (state.step + 1) % every == 0 for part, every in rhythm.items()}
        optimizer = self.optimizer(hparams, due)
        batch = self.prepare(batch, hparams, stream(key, "augment", state.step), train=True)
        trained, frozen = split(state.params, self.frozen)

        def loss_of(trained):
            weights = merged(trained, frozen), state.model_state
            model = self.trained_model(hparams, *weights, train=True)
            reseed(model, stream(key, "model", state.step))
            with recomputing(self.remat):
                means = self.means(model, state.step, batch, hparams, key)
            return means["loss"], (in_units(means, objective, self.units), variables(model)[1])

        (loss, (metrics, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        factor = self.learning_rate_factor(hparams, state.step, self.total_steps)
        grad_norm = norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        first = (state.diverged_at < 0) & ~finite
        diverged_at = jnp.where(first, state.step, state.diverged_at)
        accept = finite if self.skip_bad_updates else finite & (state.diverged_at < 0)

        given = (grads, state.opt_state, trained, factor)
        # computed once more where it is measured: to store it for both uses would cost every step
        update_norm = if_measured(measured, lambda: norm(optimizer.update(*given)[0]))
        accept &= ~(update_norm < 0)  # never so; makes XLA overwrite the state only after that
        params, opt_state = optimizer.step(*given, accept)
        params = merged(params, frozen)

        def averages(old: tuple) -> tuple:
            ema = old[0]
            if ema is not None:
                ema = optimizer.average(ema, (params, model_state), state.step)
            return ema, model_state

        ema, new_model_state = only_if(accept, averages, (state.ema, state.model_state))
        metrics |= {
            "learning_rate": jnp.asarray(optimizer.learning_rate * factor, jnp.float32),
            "grad_norm": grad_norm,
            "param_norm": if_measured(measured, lambda: norm(params)),
            "update_norm": jnp.where(accept, update_norm, 0),
        }
        new = State(params, new_model_state, opt_state, ema, state.step + 1, diverged_at)
        return new, metrics

    def means(
        self, model: nnx.Module, step: Any, batch: dict, hparams: Hparams, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the mean of each value of the objective, such as `loss`, for a prepared batch."""
        rngs = nnx.Rngs(**{name: stream(key, name, step) for name in ("dropout", "sample")})
        epoch = epochs(step, self.steps_per_epoch)
        values, _ = self.objective(hparams)(model, batch, rngs, epoch)
        return {name: jnp.mean(value) for name, value in values.items()}

    def eval_step(
        self, params: Tree, model_state: Tree, batch: Mapping[str, jax.Array], hparams: Hparams
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Return the sums of each metric over the batch, and the predictions of each example.

        Examples with a `mask` [batch] of 0 are padding; the sum `count` is Σ mask.
        """
        mask = batch["mask"]
        inputs = {name: value for name, value in batch.items() if name != "mask"}
        inputs = self.prepare(inputs, hparams, jax.random.key(0), train=False)
        model: Any = self.trained_model(hparams, params, model_state)
        objective = self.objective(hparams)
        if self.tta is not None:
            model = Averaged(model, objective)
        rngs = nnx.Rngs(sample=stream(jax.random.key(0), "sample"))
        values, outputs = objective(model, inputs | {"mask": mask}, rngs, None)
        values = in_units(values, objective, self.units)
        predictions = getattr(objective, "predictions", lambda outputs: outputs)(outputs)
        sums = sums_of(self.metrics, values, predictions, inputs | {"mask": mask})
        return sums, predictions

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics of an evaluation beside the values that the objective gives."""
        return metrics_of(self.config, self.objective(hyperparameters(self.config)))

    def measured(self, batch: Mapping[str, Any], hparams: Hparams) -> set[str]:
        """Return the names of an evaluation's scalars; of the batch, with a mask, shapes do."""
        shapes = self.weights(self.abstract_state(hparams))
        sums, _ = jax.eval_shape(self.eval_step, *shapes, batch, hparams)
        return set(scalars_of(self.metrics, jax.tree.map(lambda a: np.ones((1, *a.shape)), sums)))

    def prepare(
        self, batch: Mapping[str, jax.Array], hparams: Hparams, key: jax.Array, *, train: bool
    ) -> dict[str, jax.Array]:
        """Return a batch as the objective sees it: normalised, cropped, augmented and resized."""
        pipeline = self.pipeline
        augment = self.config["data"].get("augment")
        if augment is not None and hasattr(pipeline, "augment"):
            augment = build(place(augment, hparams, "data.augment"))
            pipeline = dataclasses.replace(pipeline, augment=augment)
        if self.tta is not None and not train:
            pipeline = dataclasses.replace(pipeline, tta=self.tta)
        prepared = pipeline(batch, key, train=train)
        name, inputs = model_input(prepared)
        if name == "image" and inputs.shape[-3:] != self.input_shape:
            inputs = resize(inputs, self.input_shape[:2])
        if jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(self.precision)
        return prepared | {name: inputs}

    @functools.cached_property
    def state_of_data(self) -> dict[str, Any]:
        """The part of a new state that follows from the data, by dotted name; mostly nothing.

        Raises:
          ValueError: there is such a part and the experiment knows no `examples`.
        """

        def seen() -> np.ndarray:  # examples as in evaluation, without test-time augmentation
            if self.examples is None:
                raise ValueError("a part of this model follows from data: hand over examples")
            _, inputs = model_input(self.pipeline(self.examples(), train=False))
            if inputs.shape[1:] != self.input_shape:
                inputs = resize(inputs, self.input_shape[:2])
            return np.asarray(inputs)

        of = getattr(locate(self.config["model"]["_target_"]), "state_of_data", None)
        return of(self.config["model"], seen) if of else {}

    def weights(self, state: State) -> tuple[Tree, Tree]:
        """Return (params, model_state) to evaluate with: the averages where there are any."""
        return (state.params, state.model_state) if state.ema is None else state.ema

    def abstract_state(self, hparams: Hparams) -> State:
        """Return shapes and dtypes of the state; nothing is allocated or compiled."""

        def initial(hparams: Hparams) -> State:
            weights = variables(self.model(hparams, jax.nn.initializers.zeros))
            check_frozen(weights[0], self.frozen)
            return self.begin(weights, hparams)

        return jax.eval_shape(initial, hparams)

    def trained_model(
        self, hparams: Hparams, params: Tree, model_state: Tree, *, train: bool = False
    ) -> nnx.Module:
        """Return the model with these weights, in the run's precision; inside a trace.

        It is in the mode of evaluation unless it is to `train`.
        """
        model = self.model(hparams, lambda key, shape, dtype: jnp.zeros(shape, dtype))
        cast = jax.tree.map(
            lambda a: a.astype(self.precision) if a.dtype == jnp.float32 else a, params
        )
        nnx.update(model, nnx.State(merged(gathered(cast), model_state)))
        model.train() if train else model.eval()
        freeze_statistics(model, self.frozen)
        return model
