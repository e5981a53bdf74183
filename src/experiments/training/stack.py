"""Trials of one static configuration on the devices: their states, numbers, data and programs."""

import time
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.callback import ValidationPredictions
from experiments.core.experiment import State, Tree
from experiments.core.params import copied, merged
from experiments.core.rng import root_key
from experiments.core.schedules import SCALE
from experiments.core.transfer import named
from experiments.data.dataset import Batch
from experiments.machine import return_freed_memory
from experiments.training import runtime
from experiments.training.devices.layout import Layout
from experiments.training.devices.memory import check_program, check_states, log_memory
from experiments.training.distributed import agree, fetch, put, put_keys
from experiments.training.evaluation import Measured, Predictions, Split
from experiments.training.feed import Window
from experiments.training.saving.checkpoints import Saved
from experiments.training.setup import Setup
from experiments.training.step import Compiled
from experiments.training.trial import Trial


class Stack:
    """A stack of trials: the first rows are theirs, the rest repeat the last one.

    Its programs are compiled from the start on. It has states once `begin` or `restore` was called,
    and can take steps once `wait` was.

    Args:
      width: trials computed as one batch (None: the fastest, by timing).
      training: whether steps will be taken.
    """

    compiled: Compiled
    states: State
    best: tuple[Tree, Tree]  # (params, model_state) of each trial's best epoch

    def __init__(self, trials: Sequence[Trial], width: int | None, *, training: bool):
        self.setup: Setup = trials[0].setup
        self.trials, self.width = list(trials), width
        self._restored_at: int | None = None
        self._window: Window | None = None  # the newest
        own_batches = len({trial.shuffle_seed for trial in trials}) > 1
        layout = self.setup.layout(len(trials), own_batches=own_batches)
        check_states(layout, self.setup.shapes, self.setup.experiment.weights(self.setup.shapes))
        self._compile(layout, training=training)
        self._place(layout)

    def begin(self, found: dict[str, np.ndarray] | None) -> None:
        """Put new trials on the devices; `found` weights take the place of new ones."""
        new = self.setup.experiment.init_weights
        weights = [new(trial.hparams, root_key(trial.seed), found) for trial in self.trials]
        self.states, self.best = self.compiled.begin(self._stacked(weights), self.hparams)

    def restore(self, saved: Sequence[Saved]) -> None:
        """Put the trials on the devices as they were saved."""
        self.states, self.best = self._stacked([(one.state, one.best) for one in saved])
        self._restored_at = saved[0].step

    def wait(self) -> None:
        """Wait for a program to train with; of several widths take the fastest."""
        narrowest = self.compiled.train
        return_freed_memory()  # what compiling has left, before steps take their memory
        if len(self._widths) > 1:
            programs = {self.compiled.width: narrowest}
            if not runtime.fills_device(self._seconds(narrowest, 1), self._rows_per_device):
                others = [self.setup.compiled(self.layout, w) for w in self._widths[1:]]
                for compiled in others:
                    compiled.prepare()
                programs |= {compiled.width: compiled.train for compiled in others}
            devices = self.layout.mesh.size
            fastest = runtime.fastest(programs, self._seconds, devices)
            self.compiled = self.setup.compiled(self.layout, fastest)
        self.width = self.setup.widths[self.layout] = self.compiled.width
        check_program(self.compiled.train, self.setup, self.layout, "a step")
        if self.layout.mesh.size > 1 or self.setup.trainer.remat:
            log_memory(self.compiled.train, self.saved)

    def step(self, window: Window, first: int, count: int) -> dict[str, jax.Array]:
        """Hand `count` steps to the devices; return their log, which is still to be computed."""
        self._window = window
        self.states, log = self.compiled.train(
            self.states,
            window.arrays,
            window.order,
            np.int32(first),
            np.int32(count),
            self.hparams,
            self.keys,
        )
        for array in log.values():
            array.copy_to_host_async()
        return log

    def diagnose(self, step: int) -> None:
        """Log numbers of each layer between two periods, where that is wanted and due.

        At the start, after every period, or the next one that is `diagnostics_every` steps away,
        and at the end.

        They are those at the first batch of the epoch, or of a stream at the batch at hand.
        """
        periods, epoch = self.setup.periods, step / self.setup.experiment.steps_per_epoch
        number, rest = divmod(step, periods.length)
        trainer = self.setup.trainer
        apart = -(-trainer.diagnostics_every // periods.length)  # in periods
        due = (not rest and number % apart == 0) or step >= periods.total
        if not (trainer.diagnostics and due) or step == self._restored_at:
            return
        window = self._window or next(iter(self.feed.windows(0, 1)))
        numbers = self.compiled.diagnose(
            self.states, window.arrays, window.order, self.hparams, self.keys
        )
        scalars, histograms = jax.tree.map(fetch, numbers)
        for row, trial in enumerate(self.trials):
            if trial.diverged_at is None:
                line = {name: float(values[row]) for name, values in scalars.items()}
                trial.trackers.log(step, {"epoch": epoch, **line})
                for name, (counts, edges) in histograms.items():
                    trial.trackers.histogram(step, name, counts[row], edges[row])

    @property
    def saved(self) -> tuple[State, tuple[Tree, Tree]]:
        """The (states, best weights) that a checkpoint holds."""
        return self.states, self.best

    @property
    def weights(self) -> tuple[Tree, Tree]:
        """The (params, model_state) to evaluate with."""
        return self.setup.experiment.weights(self.states)

    def measure(self, split: Split, weights: tuple[Tree, Tree]) -> list[Measured]:
        """Return every metric over a split, for each row."""
        evaluate, evaluator = self.compiled.evaluate, self.setup.evaluator(split, self.layout)
        metrics = self.setup.experiment.metrics
        return evaluator.measure(lambda batch: evaluate(weights, batch, self.hparams), metrics)

    def evaluate_best(
        self, split: Split, predicting: Sequence[int]
    ) -> list[tuple[Measured, Predictions | None]]:
        """Return each trial's metrics with its best weights, of some with the predictions."""
        if self.layout.rows == 1:  # whose predictions come along
            return [self._predict(0, split)]
        measured = self.measure(split, self.best)[: len(self.trials)]
        chosen = {row: self._predict(row, split)[1] for row in predicting}
        return [(one, chosen.get(row)) for row, one in enumerate(measured)]

    def _predict(self, row: int, split: Split) -> tuple[Measured, Predictions]:
        layout, stack = self.setup.layout(1), (self.best, self.hparams)
        if self.layout.rows > 1:
            stack = self._picked(stack, [row], layout)
        evaluate, evaluator = (
            self.setup.compiled(layout).evaluate,
            self.setup.evaluator(split, layout),
        )
        metrics = self.setup.experiment.metrics
        return evaluator.predict(lambda batch: evaluate(stack[0], batch, stack[1]), metrics)

    def keep_better(self, better: Sequence[bool]) -> None:
        """Take the weights of these rows as their best ones."""
        if all(better):
            del self.best  # whose memory is free for the new ones
            self.best = copied(self.weights)
        elif any(better):
            padded = np.array([*better, *[False] * (self.layout.rows - len(better))])
            self.best = _select(put(padded, self.layout.trials), self.weights, self.best)

    def set_numbers(self, names: Collection[str] = (SCALE,)) -> None:
        """Put numbers of the trials on the devices: those that an evaluation may have changed."""
        padded = [*self.trials, *[self.trials[-1]] * (self.layout.rows - len(self.trials))]
        for name in [name for name in self.setup.traced.inputs if name in names]:
            numbers = np.array([trial.hparams[name] for trial in padded])
            self.hparams[name] = put(numbers, self.layout.trials)

    def tell_callbacks(self, step: int) -> None:
        """Hand the end of an epoch to callbacks that want it, and only then fetch the weights."""
        wanted = any(trial.trackers.sees_epochs for trial in self.trials)
        if not agree([wanted]).any():  # each process has a part, and the first one the callbacks
            return
        everyone = jax.tree.map(fetch, self.weights)
        for row, trial in enumerate(self.trials):
            if trial.diverged_at is not None or not trial.trackers.sees_epochs:
                continue
            weights = jax.tree.map(lambda leaf, row=row: leaf[row].copy(), everyone)

            def predicted(trial: Trial = trial, weights: Tree = weights) -> tuple[Batch, Any]:
                program = self.setup.program(weights, trial.hparams)
                return self.setup.evaluator("validation", self.setup.alone).outputs(program)

            predictions = ValidationPredictions(predicted)
            told = named(merged(*weights)), dict(trial.line), predictions
            trial.trackers.on_epoch_end(step, *told)

    def first_nan(self, row: int, step: int) -> str | None:
        """Return the operation that first gives a NaN in a trial's `step`, or else an infinity.

        The states are those before that step, as trials that have diverged keep them. None if the
        step played by itself is finite.
        """
        window = next(iter(self.feed.windows(step, step + 1)))
        rows = slice(
            window.first * self.setup.batch_size, (window.first + 1) * self.setup.batch_size
        )
        order = np.asarray(window.order)
        index = (order[row] if order.ndim == 2 else order)[rows]
        batch = {name: fetch(array)[index] for name, array in window.arrays.items()}
        state = jax.tree.map(lambda leaf: fetch(leaf)[row], self.states)
        state = state._replace(step=np.int32(step), diverged_at=np.int32(-1))
        trial = self.trials[row]
        arguments = (state, batch, trial.hparams, root_key(trial.seed))
        found = (
            _first_error(option, self.setup.experiment.train_step, *arguments)
            for option in ("jax_debug_nans", "jax_debug_infs")
        )
        return next(filter(None, found), None)

    def weights_of(self, row: int, weights: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        """Return a trial's own (params, model_state), in memory of their own.

        Of several processes all call it, and have them on the host: the first computes alone.
        """
        if jax.process_count() > 1:
            return jax.tree.map(lambda leaf: fetch(leaf)[row].copy(), weights)
        return copied(jax.tree.map(lambda leaf: leaf[row], weights))

    def rows(self, rows: Sequence[int]) -> tuple[Tree, Tree]:
        """Return the (states, best weights) of some trials on the host."""
        stack = jax.device_get(self.saved)
        return jax.tree.map(lambda leaf: leaf[np.array(rows)], stack)

    def go_on_with(self, rows: Sequence[int]) -> None:
        """Go on with the trials in these rows, on as few devices and rows as will do."""
        before, everyone = self.layout, len(self.trials)
        self.trials = [self.trials[row] for row in rows]
        layout = self.setup.smaller(before, len(rows))
        if len(rows) == everyone and layout == before:
            return
        padded = [*rows, *[rows[-1]] * (layout.rows - len(rows))]
        self.states, self.best = self._picked(self.saved, padded, layout)
        if layout != before:
            self._compile(layout)
        self._place(layout)
        if layout != before:
            self.wait()

    # ------------------------------------------------------------------ inner workings

    @property
    def _rows_per_device(self) -> int:
        return self.layout.rows // self.layout.mesh.shape["trial"]

    def _compile(self, layout: Layout, *, training: bool = True) -> None:
        """Begin to compile for a layout, for the narrowest of the widths to choose from."""
        self.layout = layout
        wanted = self.width or self.setup.widths.get(layout)
        flops = self.setup.traced.cost.flops
        self._widths = runtime.widths(self._rows_per_device, flops, wanted)
        self.compiled = self.setup.compiled(layout, self._widths[0])
        self.compiled.prepare(training=training)

    def _place(self, layout: Layout) -> None:
        """Put the numbers, keys and data of the trials on the devices."""
        self._window = None
        padded = [*self.trials, *[self.trials[-1]] * (layout.rows - len(self.trials))]
        self.hparams: dict[str, jax.Array] = {}
        self.set_numbers(self.setup.traced.inputs)
        self.keys = put_keys([trial.seed for trial in padded], layout.trials)
        seeds = [trial.shuffle_seed for trial in padded]
        self.feed = self.setup.feed(layout, seeds if layout.own_batches else seeds[:1])

    def _stacked(self, trees: Sequence[Tree]) -> Tree:
        padded = [*trees, *[trees[-1]] * (self.layout.rows - len(trees))]
        shapes = self.layout.stacked(trees[0])
        return jax.tree.map(lambda s, *leaves: put(np.stack(leaves), s.sharding), shapes, *padded)

    def _picked(self, stack: Tree, rows: Sequence[int], layout: Layout) -> Tree:
        if jax.default_backend() == "cpu":  # cores that read each other's rows can wait for ever
            stack = jax.device_get(stack)
        index = np.array(rows)
        picked = jax.tree.map(lambda leaf: leaf[index], stack)
        return jax.tree.map(put, picked, layout.state(picked))

    def _seconds(self, program: Any, steps: int) -> float:
        """Return the time of so many steps from the states at hand, if an epoch has as many."""
        window = next(iter(self.feed.windows(0, steps)))

        def call(count: int) -> Any:
            states = copied(self.states)  # which the program takes
            order, keys = window.order, self.keys
            return program(states, window.arrays, order, 0, count, self.hparams, keys)

        jax.block_until_ready(call(1))  # which warms up
        start = time.perf_counter()
        jax.block_until_ready(call(window.end))
        return time.perf_counter() - start


@jax.jit
def _select(better: jax.Array, new: Tree, old: Tree) -> Tree:
    """Return the rows of `new` where `better` [rows], else those of `old`."""

    def chosen(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(chosen, new, old)


def _first_error(option: str, function: Callable, *arguments: Any) -> str | None:
    """Return the error that JAX raises with a debugging option, and the line that it comes from."""
    jax.config.update(option, True)
    try:
        jax.jit(function)(*arguments)
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "experiments" in f.filename and f.filename != __file__]
        where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
        return str(error).strip().splitlines()[0] + where
    finally:
        jax.config.update(option, False)
    return None
