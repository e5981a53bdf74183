"""The compiled programs of a run: many training steps a dispatch, and one evaluation batch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.core.experiment import (
    Experiment,
    Hparams,
    State,
    Tree,
)
from experiments.core.rng import stream
from experiments.training.compiler import compiler_options
from experiments.training.recorder import ends_line

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    TypeError,
    ValueError,
)


class Programs:
    """Compiles an experiment's steps for the devices of `mesh` (axis `data`).

    The number of steps of a dispatch is an input of the training program, so one compilation
    serves every length, and the numbers do not depend on how a run is cut into dispatches.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, *, batch_size: int, max_steps: int):
        self.experiment = experiment
        self.batch_size, self.max_steps = batch_size, max_steps
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec("data"))

    def compile_train(self, *arguments: Any, **options: Any) -> jax.stages.Compiled:
        """What `trace_train` gives, compiled for a long training."""
        lowered = self.trace_train(*arguments, **options).lower()
        return lowered.compile(compiler_options=compiler_options())

    def compile_eval(self, *arguments: Any) -> jax.stages.Compiled:
        """What `trace_eval` gives, compiled for a long training."""
        lowered = self.trace_eval(*arguments).lower()
        return lowered.compile(compiler_options=compiler_options())

    def trace_train(
        self,
        state: State,
        arrays: Mapping,
        hparams: Hparams,
        key: Any,
        *,
        one_batch: bool = False,
    ) -> jax.stages.Traced:
        """The traced `run(state, arrays, order, first, count, hparams, key) -> (state, log)`.

        Shapes are enough: of `state`, and of the `arrays` that batches are drawn from. `log` holds
        arrays [max_steps] of each metric, of which the first `count` are this dispatch's, and the
        scalar `diverged_at` of the state. The state is donated. The arrays are on every device;
        with `one_batch` they are a batch, split over the devices, and `order` is not looked at.
        """
        rows = next(iter(arrays.values())).shape[0]
        order = jax.ShapeDtypeStruct((rows,), jnp.int32)
        state, order = self._shapes((state, order), self.replicated)
        arrays = self._shapes(dict(arrays), self.split if one_batch else self.replicated)
        run = jax.jit(
            functools.partial(self._run, one_batch), donate_argnums=0, out_shardings=self.replicated
        )
        return run.trace(state, arrays, order, np.int32(1), np.int32(1), hparams, key)

    def trace_eval(
        self, weights: tuple[Tree, Tree], batch: Mapping, hparams: Hparams
    ) -> jax.stages.Traced:
        """The traced `evaluate(weights, batch, hparams) -> (sums, predictions)`."""

        def evaluate(weights, batch, hparams):
            params, model_state = weights
            return self.experiment.eval_step(params, model_state, batch, hparams)

        weights = self._shapes(weights, self.replicated)
        batch = self._shapes(dict(batch), self.split)
        shardings = (self.replicated, None)
        return jax.jit(evaluate, out_shardings=shardings).trace(weights, batch, hparams)

    def _shapes(self, tree: Tree, sharding: NamedSharding) -> Tree:
        def shape(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, tree)

    def _run(self, one_batch, state, arrays, order, first, count, hparams, key):
        def batch_at(i):
            if one_batch:
                return dict(arrays)
            start = (first + i) * self.batch_size
            index = jax.lax.dynamic_slice_in_dim(order, start, self.batch_size)
            batch = {name: array[index] for name, array in arrays.items()}
            return jax.lax.with_sharding_constraint(batch, self.split)

        return many_steps(
            self.experiment, batch_at, state, hparams, key, state.step, count, self.max_steps
        )


def many_steps(
    experiment: Experiment,
    batch_at: Callable,
    state: State,
    hparams: Hparams,
    key: Any,
    done: Any,
    count: Any,
    most: int,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after `count` steps, each on `batch_at(i)`, and a log; inside a trace.

    The log holds [most] of each metric, of which the first `count` count, and `diverged_at`. Which
    steps end a line of metrics follows from how many were `done` before.
    """
    log_every = experiment.config["trainer"]["log_every"]

    def ends(i):
        return ends_line(done + i + 1, log_every, experiment.steps_per_epoch)

    def body(i, carry):
        state, log = carry
        state, metrics = experiment.step(state, batch_at(i), hparams, key, ends(i))
        return state, {name: log[name].at[i].set(metrics[name]) for name in log}

    # with the batch made inside: its sharding is part of what the step is traced for
    _, shapes = jax.eval_shape(lambda: experiment.step(state, batch_at(0), hparams, key, ends(0)))
    log = {name: jnp.zeros((most, *m.shape), m.dtype) for name, m in shapes.items()}
    state, log = jax.lax.fori_loop(0, count, body, (state, log))
    return state, log | {"diverged_at": state.diverged_at}


def epoch_order(key: jax.Array, epoch: int, examples: int) -> jax.Array:
    """The shuffled order of an epoch: int32 [examples]."""
    return _order()(key, np.int32(epoch), examples)


@functools.cache
def _order() -> Callable:
    """One program, made when there is a device to make it for, with what compiles it soonest."""

    def order(key: jax.Array, epoch: jax.Array, examples: int) -> jax.Array:
        return jax.random.permutation(stream(key, "shuffle", epoch), examples)

    return jax.jit(order, static_argnums=2, compiler_options=compiler_options(0))


def traceable(
    experiment: Experiment, hparams: Hparams, arrays: Mapping, batch_size: int
) -> dict[str, np.float32]:
    """Of the candidate hyperparameters those that the program can take as inputs.

    Found out by trying each alone. Raises what tracing without any of the others raises.
    """
    key = jax.random.key(0)
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *a.shape[1:]), a.dtype)
        for name, a in arrays.items()
    }

    def traces(names) -> Exception | None:
        chosen = {name: hparams[name] for name in names}
        try:
            state = experiment.abstract_state(chosen)
            jax.eval_shape(experiment.train_step, state, batch, chosen, key, False)
        except UNTRACEABLE as error:
            return error
        return None

    kept = [name for name in hparams if traces([name]) is None]
    if (error := traces(kept)) is not None:
        raise error
    return {name: hparams[name] for name in kept}
