"""The compiled programs of a run: many training steps a dispatch, and one evaluation batch."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.experiment import Experiment, Hparams, State, Tree, stream

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

    def compile_train(self, state: State, arrays: Mapping, order: Any, hparams: Hparams, key: Any):
        """The compiled `run(state, arrays, order, first, count, hparams, key) -> (state, log)`.

        `log` holds arrays [max_steps] of each metric, of which the first `count` are this
        dispatch's, and the scalar `diverged_at` of the state. The state is donated.
        """
        run = jax.jit(self._run, donate_argnums=0)
        one = np.int32(1)
        return run.lower(state, arrays, order, one, one, hparams, key).compile()

    def compile_eval(self, weights: tuple[Tree, Tree], batch: Mapping, hparams: Hparams):
        """The compiled `evaluate(weights, batch, hparams) -> (sums, predictions)`."""

        def evaluate(weights, batch, hparams):
            batch = jax.lax.with_sharding_constraint(batch, self.split)
            return self.experiment.eval_step(*weights, batch, hparams)

        return jax.jit(evaluate).lower(weights, batch, hparams).compile()

    def _run(self, state, arrays, order, first, count, hparams, key):
        step = jax.jit(self.experiment.train_step)  # traced once for its shapes and for the loop

        def batch_at(i):
            start = (first + i) * self.batch_size
            index = jax.lax.dynamic_slice_in_dim(order, start, self.batch_size)
            batch = {name: array[index] for name, array in arrays.items()}
            return jax.lax.with_sharding_constraint(batch, self.split)

        def body(i, carry):
            state, log = carry
            state, metrics = step(state, batch_at(i), hparams, key)
            return state, {name: log[name].at[i].set(metrics[name]) for name in log}

        _, shapes = jax.eval_shape(step, state, jax.eval_shape(batch_at, 0), hparams, key)
        log = {name: jnp.zeros((self.max_steps, *m.shape), m.dtype) for name, m in shapes.items()}
        state, log = jax.lax.fori_loop(0, count, body, (state, log))
        return state, log | {"diverged_at": state.diverged_at}


def epoch_order(key: jax.Array, epoch: int, examples: int) -> jax.Array:
    """The shuffled order of an epoch: int32 [examples]."""
    return _order(stream(key, "shuffle", epoch), examples)


@functools.partial(jax.jit, static_argnums=1)
def _order(key: jax.Array, examples: int) -> jax.Array:
    return jax.random.permutation(key, examples)


def traceable(experiment: Experiment, hparams: Mapping[str, float], batch: Mapping) -> dict:
    """Of the candidate hyperparameters those that the program can take as inputs.

    Found out by trying: all at once, and one by one where that fails. Returns float32 scalars.
    """
    scalars = {name: np.float32(value) for name, value in hparams.items()}
    key = jax.random.key(0)

    def traces(names) -> Exception | None:
        chosen = {name: scalars[name] for name in names}
        try:
            state = experiment.abstract_state(chosen)
            jax.eval_shape(experiment.train_step, state, batch, chosen, key)
        except UNTRACEABLE as error:
            return error
        return None

    error = traces(scalars)
    if error is None:
        return scalars
    kept = [name for name in scalars if traces([name]) is None]
    if (error := traces(kept)) is not None:
        raise error
    return {name: scalars[name] for name in kept}
