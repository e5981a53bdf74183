"""The compiled programs of a training: many steps per dispatch, and one evaluation batch.

All of them work on a *stack* of trials: pytrees whose leaves have an axis of trials in front. Their
devices form a mesh with the axes `trial` and `data`: several trials are spread over `trial`, each
trial spreads its batches over `data`, and its state too if that is divided.
"""

import functools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.core.diagnostics.layers import diagnose
from experiments.core.experiment import Experiment, State, Tree
from experiments.core.rng import stream
from experiments.machine import return_freed_memory
from experiments.training.devices.layout import Layout, Shapes, placed
from experiments.training.devices.memory import check_program
from experiments.training.metrics import Periods
from experiments.training.runtime import background, compiler_options

if TYPE_CHECKING:
    from experiments.training.setup import Setup


class Compiled:
    """The programs for a stack of trials, compiled in the background.

    The number of steps of a dispatch is an input of the training program, so one compilation
    serves every length, and the numbers do not depend on how a training is cut into dispatches.
    The program for evaluation is compiled once `compile_evaluation` was called: the first steps of
    training have the processor to themselves.

    Args:
      setup: of the trials.
      width: trials computed as one batched computation; groups of so many are computed one after
        another. Small matrix products gain much from wide groups; large convolutions, which fill
        the device alone, gain nothing and are kinder to its caches one by one.
    """

    def __init__(self, setup: "Setup", layout: Layout, width: int):
        self.setup, self.layout, self.width = setup, layout, width
        self.experiment: Experiment = setup.experiment
        self.states = layout.stacked(setup.shapes)
        number = jax.ShapeDtypeStruct((), np.float32)
        self.hparams = layout.stacked(dict.fromkeys(setup.traced.inputs, number))
        self._of = f"{setup.static_key} {layout} {width}"
        self._train: Future[jax.stages.Compiled] | None = None
        self._lowered: Future[tuple[jax.stages.Lowered, int]] | None = None
        self._evaluate: Future[jax.stages.Compiled] | None = None
        self._checked = False  # whether there is room for an evaluation

    def prepare(self, *, training: bool = True) -> None:
        """Begin to compile what was not begun before."""
        if training and self._train is None:
            self._train = background.submit(self._compiled_training)
        if self._lowered is None:
            self._lowered = background.submit(self.lower_evaluate)

    @property
    def train(self) -> jax.stages.Compiled:
        """The training program; waits for it."""
        assert self._train is not None
        return self._train.result()

    @property
    def evaluate(self) -> jax.stages.Compiled:
        """The evaluation program; waits for it."""
        self.prepare(training=False)
        program = self.compile_evaluation().result()
        if not self._checked:
            check_program(program, self.setup, self.layout, "the evaluation of a batch")
            self._checked = True
        return program

    @functools.cached_property
    def begin(self) -> Callable[[Tree, Tree], tuple[State, Tree]]:
        """`begin(weights, hparams) -> (states, best weights)`, jitted: the stack at step 0."""
        experiment = self.experiment

        def one(weights: Tree, hparams: Tree) -> tuple[State, Tree]:
            state = experiment.begin(weights, hparams)
            return state, jax.tree.map(jnp.copy, experiment.weights(state))

        states, weights = self.states, experiment.weights(self.states)
        arguments = (states.params, states.model_state), self.hparams
        places = self.layout.state((states, weights))
        lowered, _ = self._lower("begin", jax.vmap(one), arguments, out_shardings=places)
        return lowered.compile(compiler_options(0))

    def compile_evaluation(self) -> Future[jax.stages.Compiled]:
        """Begin to compile for evaluation, now that there have been steps; return that program."""
        if self._evaluate is None:
            self._evaluate = background.submit(self._compiled_evaluation)
        return self._evaluate

    @functools.cached_property
    def diagnose(self) -> jax.stages.Compiled:
        """`diagnose(states, arrays, order, hparams, keys) -> (scalars, histograms)`, of each trial.

        The batch is the first one that `arrays` and `order`, as in training, hold. It is a program
        of its own, so that the one that trains is the same without it.
        """

        def of_all(states, arrays, order, hparams, keys):
            def one(mine):
                state, numbers, key, *own = mine
                batches = own[0] if own else order
                batch = self._batch(arrays, batches, 0)
                return diagnose(self.experiment, state, batch, numbers, key)

            own = [order] if layout.own_batches else []
            return each_trial(one, (states, hparams, keys, *own), self.width)

        layout, trials, everywhere = self.layout, PartitionSpec("trial"), PartitionSpec()
        order_of = trials if layout.own_batches else everywhere
        spread = self._spread(of_all, trials, everywhere, order_of, trials, trials)
        arguments = (self.states, *self._data, self.hparams, layout.stacked(self.setup.key))
        options = {"out_shardings": layout.trials}
        lowered, operations = self._lower("diagnose", spread, arguments, **options)
        return lowered.compile(compiler_options(operations * self.setup.periods.evaluations))

    def _compiled_training(self) -> jax.stages.Compiled:
        steps, flops = self.experiment.total_steps, self.setup.traced.cost.flops
        options = compiler_options(steps * flops * self.layout.rows, remat=self.setup.trainer.remat)
        return self.lower_train().compile(options)

    def _compiled_evaluation(self) -> jax.stages.Compiled:
        assert self._lowered is not None
        (lowered, operations), setup = self._lowered.result(), self.setup
        times, splits = setup.periods.evaluations, setup.splits
        examples = times * len(splits.validation) + len(splits.test)
        batches = math.ceil(examples / setup.eval_batch_size)
        program = lowered.compile(compiler_options(batches * operations))
        return_freed_memory()
        return program

    # ------------------------------------------------------------------ lowering

    def lower_train(self) -> jax.stages.Lowered:
        """Lower `train(states, arrays, order, first, count, hparams, keys) -> (states, log)`.

        Steps first to first + count of an epoch are taken on batches that are drawn from `arrays`
        by `order`. Arrays of a stream are one batch, divided among the devices, and `order` is not
        looked at. `log` has arrays [rows, most steps] of each metric, of which the first `count`
        are this dispatch's, and `diverged_at` [rows]. The states are donated.
        """
        layout, most = self.layout, self.setup.trainer.max_steps_per_dispatch

        def train(states, arrays, order, first, count, hparams, keys):
            done = states.step[0]  # of all trials; of each it would be a condition of many values

            def one(mine):
                state, numbers, key, *own = mine
                batches = own[0] if own else order

                def batch_at(i):
                    return self._batch(arrays, batches, first + i)

                given = (state, numbers, key, done, count, most)
                return many_steps(self.experiment, self.setup.periods, batch_at, *given)

            own = [order] if layout.own_batches else []
            return each_trial(one, (states, hparams, keys, *own), self.width)

        trials, everywhere = PartitionSpec("trial"), PartitionSpec()
        order_of = trials if layout.own_batches else everywhere
        spread = self._spread(
            *(train, trials, everywhere, order_of, everywhere, everywhere, trials, trials)
        )
        step, keys = np.int32(1), layout.stacked(self.setup.key)
        arguments = (self.states, *self._data, step, step, self.hparams, keys)
        places = layout.state(self.states), layout.trials
        options = {"donate_argnums": 0, "out_shardings": places}
        return self._lower("train", spread, arguments, **options)[0]

    def lower_evaluate(self) -> tuple[jax.stages.Lowered, int]:
        """Lower `evaluate(weights, batch, hparams) -> (sums, predictions)`.

        Each sum over the batch is [rows]. Predictions have the axis of trials too. Of several
        trials they are None: they would take the memory of all.

        Returns:
            The program, and the operations of a call.
        """
        predictions = self.layout.rows == 1

        def evaluate(weights, batch, hparams):
            def one(mine):
                (params, model_state), numbers = mine
                sums, outputs = self.experiment.eval_step(params, model_state, batch, numbers)
                return (sums, outputs) if predictions else (sums, None)

            return each_trial(one, (weights, hparams), self.width)

        trials, everywhere = PartitionSpec("trial"), PartitionSpec()
        spread = self._spread(evaluate, trials, everywhere, trials)
        batch = placed(self.setup.evaluation_shapes, self.layout.batch)
        arguments = (self.experiment.weights(self.states), batch, self.hparams)
        return self._lower("evaluate", spread, arguments, out_shardings=(self.layout.trials, None))

    @property
    def _data(self) -> tuple[Shapes, jax.ShapeDtypeStruct]:
        """The shapes of the arrays that batches are drawn from and of the order of examples."""
        layout, arrays = self.layout, self.setup.training_shapes
        rows = next(iter(arrays.values())).shape[0]
        shape = (layout.rows, rows) if layout.own_batches else (rows,)
        place = layout.batches(rows) if self.setup.streamed else layout.everywhere
        return placed(arrays, place), jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.order)

    def _lower(
        self, kind: str, function: Callable, arguments: tuple, **options: Any
    ) -> tuple[jax.stages.Lowered, int]:
        with self.layout.traced():
            return self.setup.programs.lower(kind, self._of, function, arguments, **options)

    def _batch(self, arrays: Mapping, order: jax.Array, step: Any) -> Mapping[str, jax.Array]:
        """Return a batch, divided among the devices of a trial; XLA pads uneven parts."""
        size, batch = self.setup.batch_size, arrays
        if not self.setup.streamed:
            index = jax.lax.dynamic_slice_in_dim(order, step * size, size)
            batch = {name: array[index] for name, array in arrays.items()}
        if self.layout.mesh.shape["data"] == 1:
            return batch
        spread = self.layout.mesh.shape["trial"] > 1  # where the mesh is that of `shard_map`
        place = self.layout.batch.spec if spread else self.layout.batch
        return jax.lax.with_sharding_constraint(batch, place)

    def _spread(self, function: Callable, *specs: PartitionSpec) -> Callable:
        """Return the function for all trials, each device, or group of them, computing its own.

        No device waits for one of other trials within a program: cores that do can wait for ever,
        as XLA's CPU backend may have no thread left for the one that is waited for. What devices of
        one trial tell each other is left to XLA.
        """
        mesh, out = self.layout.mesh, PartitionSpec("trial")
        if mesh.shape["trial"] == 1:
            return function
        own = {"trial"} if mesh.shape["data"] > 1 else set(mesh.axis_names)
        options: dict[str, Any] = {"axis_names": own, "check_vma": False}
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, **options)


def each_trial(one: Callable[[Tree], Tree], stack: Tree, width: int) -> Tree:
    """Return `one` of every entry along the first axis of `stack`, `width` of them as one batch.

    A stack of one is computed without that axis: as a batch of one, each of its products would be
    a batched one, and both sides of its conditions would be computed.
    """
    rows = jax.tree.leaves(stack)[0].shape[0]
    if rows == 1:
        return jax.tree.map(lambda leaf: leaf[None], one(jax.tree.map(lambda a: a[0], stack)))
    if width == 1:
        return jax.lax.map(one, stack)
    if width < rows:
        return jax.lax.map(one, stack, batch_size=width)
    return jax.vmap(one)(stack)


def many_steps(
    experiment: Experiment,
    periods: Periods,
    batch_at: Callable,
    state: State,
    hparams: Tree,
    key: Any,
    done: Any,
    count: Any,
    most: int,
) -> tuple[State, dict[str, jax.Array]]:
    """Return the state after `count` steps, each on `batch_at(i)`, and a log; inside a trace.

    The log has [most] values of each metric, of which the first `count` count, and `diverged_at`.
    The steps that end a line of metrics follow from the number of steps `done` before.
    """

    def ends(i):
        return periods.ends_line(done + i + 1)

    def body(i, carry):
        state, log = carry
        state, metrics = experiment.step(state, batch_at(i), hparams, key, ends(i))
        return state, {name: log[name].at[i].set(metrics[name]) for name in log}

    # with the batch made inside: its sharding is part of what the step is traced for
    _, shapes = jax.eval_shape(lambda: experiment.step(state, batch_at(0), hparams, key, ends(0)))
    log = {name: jnp.zeros((most, *m.shape), m.dtype) for name, m in shapes.items()}
    state, log = jax.lax.fori_loop(0, count, body, (state, log))
    return state, log | {"diverged_at": state.diverged_at}


@functools.cache
def _order() -> Callable:
    """Return the program of `epoch_order`, made when there is a device to make it for."""

    def order(key: jax.Array, epoch: jax.Array, examples: int, shares: Any) -> jax.Array:
        key = stream(key, "shuffle", epoch)
        if shares is None:
            return jax.random.permutation(key, examples)
        return jax.random.choice(key, examples, (examples,), p=shares).astype(jnp.int32)

    return jax.jit(order, static_argnums=2, compiler_options=compiler_options(0))


def epoch_order(
    key: jax.Array, epoch: int, examples: int, shares: np.ndarray | None = None
) -> jax.Array:
    """Return the shuffled order of an epoch, or what is drawn by `shares`: int32 [examples]."""
    return _order()(key, np.int32(epoch), examples, shares)
