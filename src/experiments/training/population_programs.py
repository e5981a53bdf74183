"""The compiled programs of a population."""

import math
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
from experiments.training.compiler import compiler_options
from experiments.training.program import many_steps


class PopulationPrograms:
    """Compiles an experiment's steps for stacks of lanes, spread over the devices of `mesh`.

    No device waits for another within a program: cores that do can wait for ever, as XLA's CPU
    backend may have no thread left for the one that is waited for.

    The program runs `width` lanes at a time as one batched computation and, where there are more,
    one such group after another. Small matrix products gain much from wide groups; large
    convolutions, which fill the device alone, gain nothing and are kinder to its caches one by one.

    Args:
      mesh: with the axis `lanes`.
      own_batches: whether each lane has its own order of the data.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        *,
        batch_size: int,
        max_steps: int,
        own_batches: bool,
    ):
        self.experiment, self.mesh = experiment, mesh
        self.batch_size, self.max_steps = batch_size, max_steps
        self.own_batches = own_batches
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.stacked = NamedSharding(mesh, PartitionSpec("lanes"))

    def compile_init(self, hparams: Tree, keys: Any) -> jax.stages.Compiled:
        """`init(hparams, keys) -> (states, weights)`, compiled: the stack at step 0.

        The states are equal to those of solo runs, `weights` are theirs, in memory of their own.
        In one program: under vmap every operation outside of one would be compiled by itself, which
        takes an MLP or a LeNet-5 twice as long.
        """

        def one(hparams: Hparams, key: jax.Array) -> tuple[State, tuple[Tree, Tree]]:
            state = self.experiment.init(hparams, key, call=inline)
            return state, self.experiment.weights(state)

        spread = PartitionSpec("lanes")
        mapped = jax.shard_map(
            jax.vmap(one),
            mesh=self.mesh,
            in_specs=(spread, spread),
            out_specs=spread,
            check_vma=False,
        )
        lowered = jax.jit(mapped).lower(
            self._shapes(hparams, self.stacked), self._shapes(keys, self.stacked)
        )
        return lowered.compile(compiler_options=compiler_options(0))

    def compile_train(
        self,
        states: State,
        arrays: Mapping,
        hparams: Tree,
        keys: Any,
        width: int,
        work: float = math.inf,
    ) -> jax.stages.Compiled:
        """`run(states, arrays, order, first, count, hparams, keys) -> (states, log)`, compiled.

        Like `training.program.Programs.compile_train`, with an axis of lanes in front of `states`,
        `hparams`, `keys`, the arrays of `log` and, with `own_batches`, `order`. `work` is that of
        `compiler_options`.
        """
        lanes = keys.shape[0]

        def run(states, arrays, order, first, count, hparams, keys):
            done = states.step[0]  # of all lanes; of each it would be a condition of many values

            def lane(mine):
                state, numbers, key, *own = mine
                batches = own[0] if own else order
                return self._steps(state, numbers, key, arrays, batches, first, done, count)

            mine = (states, hparams, keys, *([order] if self.own_batches else []))
            return each_lane(lane, mine, width)

        rows = next(iter(arrays.values())).shape[0]
        order = jax.ShapeDtypeStruct((lanes, rows) if self.own_batches else (rows,), jnp.int32)
        spread, whole = PartitionSpec("lanes"), PartitionSpec()
        mapped = jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=(
                spread,
                whole,
                spread if self.own_batches else whole,
                whole,
                whole,
                spread,
                spread,
            ),
            out_specs=spread,
            check_vma=False,
        )
        lowered = jax.jit(mapped, donate_argnums=0).lower(
            self._shapes(states, self.stacked),
            self._shapes(dict(arrays), self.replicated),
            self._shapes(order, self.stacked if self.own_batches else self.replicated),
            np.int32(1),
            np.int32(1),
            self._shapes(hparams, self.stacked),
            self._shapes(keys, self.stacked),
        )
        return lowered.compile(compiler_options=compiler_options(work))

    def compile_eval(
        self,
        weights: tuple[Tree, Tree],
        batch: Mapping,
        hparams: Tree,
        width: int,
        work: float = math.inf,
    ) -> jax.stages.Compiled:
        """`evaluate(weights, batch, hparams) -> sums`, compiled, each sum [lanes]."""

        def evaluate(weights, batch, hparams):
            def lane(mine):
                (params, model_state), own = mine
                return self.experiment.eval_step(params, model_state, batch, own)[0]

            return each_lane(lane, (weights, hparams), width)

        spread, whole = PartitionSpec("lanes"), PartitionSpec()
        mapped = jax.shard_map(
            evaluate,
            mesh=self.mesh,
            in_specs=(spread, whole, spread),
            out_specs=spread,
            check_vma=False,
        )
        lowered = jax.jit(mapped).lower(
            self._shapes(weights, self.stacked),
            self._shapes(dict(batch), self.replicated),
            self._shapes(hparams, self.stacked),
        )
        return lowered.compile(compiler_options=compiler_options(work))

    def compile_select(self, weights: tuple[Tree, Tree]) -> jax.stages.Compiled:
        """`select(better, new, old) -> weights`, compiled: the new ones of lanes that are better.

        `better` [lanes] is on the devices of the lanes.
        """

        def select(better: jax.Array, new: Tree, old: Tree) -> Tree:
            return jax.tree.map(
                lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
            )

        stack = self._shapes(weights, self.stacked)
        lanes = jax.tree.leaves(weights)[0].shape[:1]
        better = jax.ShapeDtypeStruct(lanes, bool, sharding=self.stacked)
        lowered = jax.jit(select).lower(better, stack, stack)
        return lowered.compile(compiler_options=compiler_options(0))

    def _steps(self, state, hparams, key, arrays, order, first, done, count):
        """`count` steps of one lane."""

        def batch_at(i):
            index = jax.lax.dynamic_slice_in_dim(
                order, (first + i) * self.batch_size, self.batch_size
            )
            return {name: array[index] for name, array in arrays.items()}

        return many_steps(
            self.experiment, batch_at, state, hparams, key, done, count, self.max_steps
        )

    def _shapes(self, tree: Tree, sharding: NamedSharding) -> Tree:
        def shape(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, tree)


def inline(_key: str, function: Any, *arguments: Any, static: tuple = ()) -> Any:
    """Calls a jitted function as part of the program around it."""
    return function.__wrapped__(*arguments, *static)


def each_lane(lane: Callable[[Tree], Tree], lanes: Tree, width: int) -> Tree:
    """`lane` of every entry along the first axis of `lanes`, `width` of them side by side.

    A width of 1 is the program of a run by itself: a batch of one would take each of its products
    for a batched one, and compute both sides of its conditions.
    """
    if width == 1:
        return jax.lax.map(lane, lanes)
    if width < jax.tree.leaves(lanes)[0].shape[0]:
        return jax.lax.map(lane, lanes, batch_size=width)
    return jax.vmap(lane)(lanes)
