"""Training a population: the loop of `training.run`, over all lanes at once."""

import importlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.experiment import State, Tree
from experiments.core.params import copied, count_parameters
from experiments.core.rng import root_key
from experiments.training import garbage, stored
from experiments.training.decisions import Pace
from experiments.training.evaluation import means
from experiments.training.population_lane import Lane, Member
from experiments.training.population_records import Records
from experiments.training.population_saving import Saving
from experiments.training.population_shared import Shared
from experiments.training.population_width import timed
from experiments.training.program import epoch_order
from experiments.training.recorder import Line

log = logging.getLogger(__name__)

NEVER = 2**31 - 1
TESTED = ("finished", "stopped_early")


class Population:
    """Members of one static configuration, at the same step, under way together.

    The device holds a stack of rows; the first `len(self.lanes)` of them are lanes that still
    train, the rest repeat the last one. Lanes that end leave at the end of an epoch; when half of
    the rows are unused the stack shrinks to half, so that few sizes are ever compiled.

    Args:
      members: they share one `session.static` and are at one step.
      folder: where the checkpoint of all goes.
      width: lanes computed side by side; None finds the fastest.
      resume: whether the members go on from what was saved.
    """

    def __init__(
        self,
        members: Sequence[Member],
        folder: Path,
        width: int | None,
        *,
        test: bool,
        resume: bool,
    ):
        self.session, self.test = members[0].session, test
        self.experiment, self.trainer = self.session.experiment, self.session.trainer
        self.own_batches = len({member.session.shuffle_seed for member in members}) > 1
        self.shared = Shared(self.session, self.own_batches, len(members))
        parameters = count_parameters(self.shared.shapes.params)
        self.lanes = [Lane(member, parameters) for member in members]
        self.everyone = list(self.lanes)
        self.records = Records(self.trainer.log_every, self.experiment.steps_per_epoch)
        self.pace = Pace(self.trainer.max_steps_per_dispatch)
        every = self.trainer.checkpoint_every if self.trainer.checkpoints else None
        self.saving = Saving(folder, every)
        self.width = width
        self.interrupted = False
        self.unlogged: list[tuple[Lane, int, Line]] = []  # the last lines of an epoch
        self.resumed = resume
        self._begin(resume)

    @property
    def rows(self) -> int:
        """Rows of the stack."""
        return self.keys.shape[0]

    def train(self, trained: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """All epochs that are left; returns the summaries in the order of the members.

        `trained` is called after the last of them, unless they were cut short, before the lanes are
        saved.
        """
        garbage.as_usual()
        steps_per_epoch = self.experiment.steps_per_epoch
        for lane in self.lanes:
            lane.start(self.records.step if self.resumed else None)
        while self.lanes and (epoch := self.records.step // steps_per_epoch) < self.trainer.epochs:
            lines = self._epoch(epoch)
            if self.interrupted:
                break
            self._validate(lines)
            if any(lane.trackers.may_stop for lane in self.lanes):
                self._log()
            if epoch + 1 < self.trainer.epochs:
                self._leave([lane.verdict() for lane in self.lanes])
                if self.lanes and self.saving.due:
                    self._log()
                    self._save()
        self._log()
        if not self.interrupted:
            trained()
        if self.trainer.checkpoints and self.lanes:
            self._save(last=True)
        left = "interrupted" if self.interrupted else "finished"
        self._leave([lane.verdict() or left for lane in self.lanes], own=False)
        self.saving.close()
        return [lane.summary for lane in self.everyone]

    # ------------------------------------------------------------------ the stack of lanes

    def _begin(self, resume: bool) -> None:
        """Puts the lanes on the device, as they were saved or at step 0."""
        self._restack()
        if not resume:
            if self.trainer.checkpoints:
                Thread(target=importlib.import_module, args=("orbax.checkpoint",)).start()
            with ThreadPoolExecutor() as pool:  # while XLA works, the weights are drawn
                initial = pool.submit(self.shared.initial, self.hparams, self.keys)
                self._compile(lambda: initial.result()[0])
            self.states, self.best = initial.result()
        else:
            folders = [lane.directory for lane in self.lanes]
            shapes = self.shared.shapes
            saved = stored.load(folders, shapes, self.experiment.weights(shapes))
            for lane, (_, _, progress) in zip(self.lanes, saved, strict=True):
                lane.restore(progress)
            self.records.restore([progress["recorder"] for _, _, progress in saved])
            padded = [*saved, *[saved[-1]] * (self.rows - len(saved))]
            trees = [(state, weights) for state, weights, _ in padded]
            stack = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
            self.states, self.best = self.shared.spread(stack)
            self._compile(lambda: self.states)

    def _restack(self, rows: int | None = None) -> None:
        """Numbers and keys of the rows; as many as asked for, or as there are lanes."""
        rows = rows or self.shared.rows(len(self.lanes))
        padded = [*self.lanes, *[self.lanes[-1]] * (rows - len(self.lanes))]
        names = self.session.hparams
        self.hparams = {
            name: np.array([lane.session.hparams[name] for lane in padded]) for name in names
        }
        self.hparams = self.shared.spread(self.hparams)
        seeds = np.array([lane.session.config["seed"] for lane in padded])
        self.keys = self.shared.spread(root_key(seeds))
        shuffles = np.array([lane.session.shuffle_seed for lane in padded])
        self.shuffle_keys = root_key(shuffles)

    def _compile(self, states: Callable[[], State]) -> None:
        """The programs for as many rows as there are."""
        made = self.shared.compiled(
            self.rows, self.width, lambda program, steps: self._time(program, states(), steps)
        )
        self.width, self.run, self.evaluate = made
        self.select = self.shared.select(self.rows)

    def _time(self, program: Any, states: State, steps: int) -> float:
        """Seconds of so many steps from these states, if an epoch has as many."""
        window = next(iter(self.shared.feed.windows(0, 0)))
        order = self._order(0, window)

        def call(count: int) -> Any:
            # the program takes its states
            return program(copied(states), window.arrays, order, 0, count, self.hparams, self.keys)

        return timed(call, min(steps, window.steps))

    def _order(self, epoch: int, window: Any) -> jax.Array:
        if not self.own_batches:
            return window.order
        examples = len(self.session.splits.train)
        return self.shared.spread(
            jnp.stack([epoch_order(key, epoch, examples) for key in self.shuffle_keys])
        )

    # ------------------------------------------------------------------ epochs

    def _epoch(self, epoch: int) -> list[Line]:
        """Trains the rest of an epoch; returns its last line of each lane, which is not logged.

        Those of the epoch before are, once the device has work.
        """
        end = (epoch + 1) * self.experiment.steps_per_epoch
        last: list[Line] = [{} for _ in self.lanes]
        self.clock = time.perf_counter()
        while self.records.step < end and not self.interrupted:
            waiting = None
            for dispatch in itertools.chain(self._dispatches(epoch, end), [None]):
                self._log()
                self._collect(waiting, end, last)
                waiting = dispatch
            if self.saving.due and self.records.step < end:  # at the end, once it is validated
                self._save()
                self.clock = time.perf_counter()
        return last

    def _dispatches(self, epoch: int, end: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        left = end - self.records.step
        for window in self.shared.feed.windows(epoch, self.experiment.steps_per_epoch - left):
            first, order = window.first, self._order(epoch, window)
            while left and first < window.steps:
                if all(lane.stop.name is not None for lane in self.lanes):
                    self.interrupted = any(lane.stop.status == "interrupted" for lane in self.lanes)
                    if self.interrupted:
                        return
                count = min(self.pace.steps, window.steps - first, left)
                self.states, metrics = self.run(
                    self.states,
                    window.arrays,
                    order,
                    np.int32(first),
                    np.int32(count),
                    self.hparams,
                    self.keys,
                )
                for array in metrics.values():
                    array.copy_to_host_async()
                yield metrics, count
                first += count
                left -= count
                if self.saving.due:
                    return
            if not left:
                return

    def _collect(self, dispatch: tuple[dict, int] | None, end: int, last: list[Line]) -> None:
        """Logs the lines that a dispatch completes; those of the epoch's end go into `last`."""
        if dispatch is None:
            return
        metrics, count = dispatch
        host = jax.device_get(metrics)
        seconds = time.perf_counter() - self.clock
        self.clock = time.perf_counter()
        self.pace.took(seconds, count)
        rate = count * self.session.batch_size / max(seconds, 1e-9)
        diverged = host.pop("diverged_at")
        stops = diverged >= 0 if self.trainer.on_nan == "stop" else np.zeros(len(diverged), bool)
        ends = np.where(stops, diverged + 1, NEVER)[: len(self.lanes)]
        host = {name: values[: len(self.lanes)] for name, values in host.items()}
        for lane in self.lanes:
            lane.training_seconds += seconds
        for step, only in self.records.add(host, count, ends):
            lines = self.records.lines()
            for row, lane in enumerate(self.lanes):
                if lane.diverged_at is not None or only not in (None, row):
                    continue
                line = lines[row] | {"examples_per_second": rate}
                if only is not None:
                    log.warning("%s: not finite at step %d", lane.directory.name, step)
                    lane.diverged_at = step
                if only is None and step == end:
                    last[row] = line
                else:
                    lane.log(step, line)

    def _validate(self, lines: list[Line]) -> None:
        """Validates all lanes, which completes the lines of the epoch; keeps the best weights."""
        weights = self.experiment.weights(self.states)
        values = self._evaluate("validation", weights, "val")
        better = np.zeros(self.rows, bool)
        epochs = self.records.end_epoch()
        for row, lane in enumerate(self.lanes):
            if lane.diverged_at is not None:
                continue
            line = lines[row] | epochs[row] | values[row]
            better[row] = lane.see(line)
            self.unlogged.append((lane, self.records.step, line))
        self.best = self.select(self.shared.spread(better), weights, self.best)

    def _log(self) -> None:
        for lane, step, line in self.unlogged:
            lane.trackers.log(step, line)
        self.unlogged = []

    def _evaluate(self, split: str, weights: tuple[Tree, Tree], prefix: str) -> list[Line]:
        """The mean of every metric over a split, lane by lane."""
        batches = self.shared.evaluator(split).batches()
        found = means([self.evaluate(weights, batch, self.hparams) for batch in batches])
        names = [f"{prefix}/{name}" for name in found]
        return [dict(zip(names, row, strict=True)) for row in zip(*found.values(), strict=True)]

    # ------------------------------------------------------------------ leaving and saving

    def _leave(self, verdicts: Sequence[str | None], own: bool = True) -> None:
        """Ends the lanes that have a verdict; `own`: saves each in its own folder first."""
        if not any(verdicts):
            return
        self._log()
        tested: list[Line] = [{} for _ in verdicts]
        if self.test and any(verdict in TESTED for verdict in verdicts):
            tested = self._evaluate("test", self.best, "test")
        if own and self.trainer.checkpoints:
            self._save_apart([i for i, v in enumerate(verdicts) if v not in (None, "diverged")])
        for lane, verdict, line in zip(self.lanes, verdicts, tested, strict=False):
            if verdict is not None:
                passed = line if self.test and verdict in TESTED else {}
                lane.finish(self.records.step, verdict, passed)
        self._keep([row for row, verdict in enumerate(verdicts) if verdict is None])

    def _keep(self, rows: list[int]) -> None:
        """Goes on with the lanes in these rows, on as few devices and rows as will do."""
        before = (len(self.lanes), self.rows)
        self.lanes = [self.lanes[row] for row in rows]
        if not rows:
            return
        self.records.keep(np.array(rows))
        self.shared = self.shared.fewer_devices(len(rows))
        size = self.shared.fewer_rows(self.rows, len(rows))
        if (len(rows), size) == before:
            return
        self.saving.new_stack()
        index = np.array([*rows, *[rows[-1]] * (size - len(rows))])
        resized = size != self.rows
        self.states, self.best = self.shared.picked((self.states, self.best), index)
        self._restack(size)
        if resized:
            self._compile(lambda: self.states)

    def _save(self, *, last: bool = False) -> None:
        """Saves all lanes that still train; the last time no step will follow."""
        progress = [lane.progress(self.records.progress(r)) for r, lane in enumerate(self.lanes)]
        folders = [lane.directory for lane in self.lanes]
        stack = (self.states, self.best) if last else copied((self.states, self.best))
        self.saving.save(self.records.step, stack, folders, progress)

    def _save_apart(self, rows: list[int]) -> None:
        """Saves these lanes each in its own folder."""
        lanes = {row: self.lanes[row] for row in rows}
        self.saving.save_apart(
            self.records.step,
            (self.states, self.best),
            {
                row: (lane.directory, lane.progress(self.records.progress(row)))
                for row, lane in lanes.items()
            },
        )
