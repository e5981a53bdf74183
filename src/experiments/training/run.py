"""A training under way: epochs of dispatches, their metrics, validation and checkpoints."""

import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.core.experiment import State, Tree
from experiments.core.params import copied, count_parameters
from experiments.tracking.tracker import Trackers
from experiments.training import garbage, stored
from experiments.training.checkpoints import Checkpoints, shaped
from experiments.training.compiled import Compiled
from experiments.training.decisions import Decisions
from experiments.training.distributed import is_first, put
from experiments.training.evaluation import Predictions
from experiments.training.nan import blame
from experiments.training.profile import Profile
from experiments.training.recorder import Line, Recorder
from experiments.training.report import Album
from experiments.training.session import Session
from experiments.training.signals import StopRequest
from experiments.training.watch import Watch

log = logging.getLogger(__name__)

LARGE = 64 * 2**20  # bytes of a state that are not copied for the saver


class Run:
    """A training under way: the state on the device, and what was seen so far."""

    compiled: Compiled
    state: State
    best_weights: tuple[Tree, Tree]

    def __init__(
        self,
        session: Session,
        trackers: Trackers,
        stop: StopRequest,
        shapes: State,
        directory: Path,
    ):
        trainer, experiment = session.trainer, session.experiment
        self.session, self.trackers, self.shapes = session, trackers, shapes
        self.directory = directory
        self.parameters = count_parameters(shapes.params)
        self.checkpoints: Checkpoints | None = None
        self.validation = session.evaluator("validation")
        self.watch = Watch.of(session)
        self.recorder = Recorder(trainer.log_every, experiment.steps_per_epoch, session.batch_size)
        save_every = trainer.checkpoint_every if trainer.checkpoints else None
        self.decisions = Decisions(
            stop, trainer.max_time, save_every, trainer.max_steps_per_dispatch
        )
        self.album = Album(session, directory, trackers)
        self.profile = Profile(directory, trainer.profile_steps if is_first() else 0)
        self.last_line: Line = {}
        self.diverged_at: int | None = None
        self.training_seconds = 0.0
        self.seconds_before = 0.0  # of earlier sittings of a resumed run

    @property
    def step(self) -> int:
        """Steps done."""
        return self.recorder.step

    @property
    def epochs_done(self) -> float:
        """Epochs trained, in fractions."""
        return self.step / self.session.experiment.steps_per_epoch

    def train(self) -> str:
        """All epochs that are left; returns the status that the run ends with."""
        garbage.as_usual()
        trainer = self.session.trainer
        self.started = time.perf_counter()
        self.decisions.start()
        steps_per_epoch = self.recorder.steps_per_epoch
        while (epoch := self.step // steps_per_epoch) < trainer.epochs:
            self.decisions.look()
            if reason := self._enough():
                log.info("stopping early: %s", reason)
                return "stopped_early"
            if self.decisions.signal is not None:
                log.warning("stopped by %s after step %d", self.decisions.signal, self.step)
                return "interrupted"
            before = self.step
            line = self._epoch(epoch)
            if self.diverged_at is not None:
                self._report_divergence(self.diverged_at)
                return "diverged"
            cut_short = self.decisions.signal is not None and self.step % steps_per_epoch
            if self.step == before or cut_short:
                continue  # to the reason above
            self.last_line = line | self.recorder.end_epoch() | self._validate()
            self.trackers.log(self.step, self.last_line)
            if self.watch.better(self.last_line):
                del self.best_weights  # their memory is free for the new ones
                self.best_weights = copied(self.session.experiment.weights(self.state))
            if trainer.figures and is_first() and self.album.wants(epoch + 1):
                self.album.after_epoch(
                    self.step, copied(self.session.experiment.weights(self.state))
                )
            if self.decisions.save_due or (trainer.checkpoints and self._kept_for_good()):
                self.save()
        self.album.finish_drawing(self.step)
        return "finished"

    def test(self) -> tuple[Line, Predictions]:
        """`test/*` of the best weights, and the predictions."""
        split = self.session.evaluator("test")
        evaluate, hparams = self.compiled.evaluate, self.compiled.hparams
        values, predictions = split.predict(evaluate, self.best_weights, hparams)
        return {f"test/{name}": value for name, value in values.items()}, predictions

    def summary(self, status: str) -> dict[str, Any]:
        """What `summary.json` says, but for the test."""
        seen = self.step * self.session.batch_size
        summary: dict[str, Any] = {"step": self.step, **self.last_line, **self.watch.told}
        if self.diverged_at is not None:
            summary["diverged_at"] = self.diverged_at
        return summary | {
            "status": status,
            "seconds": round(self.seconds, 3),
            "examples_per_second": seen / max(self.training_seconds, 1e-9),
            "parameters": self.parameters,
        }

    @property
    def seconds(self) -> float:
        """Seconds of training and validation, over all sittings."""
        return self.seconds_before + time.perf_counter() - self.started

    def save(self, *, last: bool = False) -> None:
        """Saves a checkpoint in the background; the last one when no step will follow.

        On a CPU a large one is waited for, which spares the memory of a copy.
        """
        if self.checkpoints is None:
            self.checkpoints = self._open_checkpoints()
        if not self.checkpoints.has(self.step):
            large = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state)) > LARGE
            wait = large and jax.default_backend() == "cpu" and not last
            # the copy is the saver's own: the next step is free to overwrite the state
            state = self.state if last or wait else copied(self.state)
            self.checkpoints.save(self.step, state, self.best_weights, self.progress)
            if wait:
                self.checkpoints.wait()
        self.decisions.saved()

    def begin(self, state: State) -> None:
        """Starts from an initial state."""
        self.state = jax.tree.map(lambda leaf: put(leaf, self.session.replicated), state)
        self.best_weights = copied(self.session.experiment.weights(self.state))

    def restore(self) -> None:
        """Goes back to the newest checkpoint."""
        sharding = self.session.replicated
        best = self.session.experiment.weights(self.shapes)
        if stored.is_lane(self.directory):
            state, weights, self.progress = stored.load([self.directory], self.shapes, best)[0]
            self.state, self.best_weights = jax.tree.map(
                lambda leaf: put(leaf, sharding), (state, weights)
            )
            return
        self.checkpoints = self._open_checkpoints()
        self.state, self.best_weights, self.progress = self.checkpoints.restore(
            shaped(self.shapes, sharding), shaped(best, sharding)
        )
        self.checkpoints.discard_after(self.step)

    def _open_checkpoints(self) -> Checkpoints:
        every = self.session.trainer.keep_every
        return Checkpoints(self.directory, every and every * self.recorder.steps_per_epoch)

    @property
    def progress(self) -> dict[str, Any]:
        """What the host knows and the device does not; JSON."""
        return {
            "recorder": self.recorder.progress,
            "best": self.watch.best,
            "stale": self.watch.stale,
            "last_line": self.last_line,
            "training_seconds": self.training_seconds,
            "seconds": self.seconds,
            "fingerprint": self.session.splits.fingerprint,
        }

    @progress.setter
    def progress(self, saved: dict[str, Any]) -> None:
        self.recorder.progress = saved["recorder"]
        self.watch.best, self.watch.stale = saved["best"], saved["stale"]
        self.last_line = saved["last_line"]
        self.training_seconds = saved["training_seconds"]
        self.seconds_before = saved["seconds"]
        if saved["fingerprint"] != self.session.splits.fingerprint:
            log.warning("the data on disk have changed since this run was saved")

    def _report_divergence(self, step: int) -> None:
        log.warning("loss or gradient is not finite at step %d", step)
        if self.session.trainer.debug_nans:
            found = blame(self.session, self.compiled, self.state, step - 1)
            log.warning("it comes from %s", found or "no single operation of that step")

    def _enough(self) -> str | None:
        """Why the run should end after the epochs so far, if it should."""
        trainer = self.session.trainer
        if self.watch.exhausted:
            return f"val/{self.watch.metric} has not improved for {trainer.patience} epochs"
        if self.decisions.late:
            return f"trainer.max_time={trainer.max_time:g} seconds have passed"
        loss = self.last_line.get("train/epoch_loss", float("inf"))
        if trainer.target_loss is not None and loss <= trainer.target_loss:
            return f"trainer.target_loss={trainer.target_loss:g} is reached"
        return None

    def _epoch(self, epoch: int) -> Line:
        """Trains the rest of an epoch and logs its lines, all but the last, which is returned.

        The metrics of a dispatch are fetched while the next one runs: the device never waits for
        the log. Before a checkpoint all of them are fetched, so that it holds one moment. Between
        two lines it is said how far the run is: with steps of seconds a line takes minutes.
        """
        end = (epoch + 1) * self.recorder.steps_per_epoch
        self.recorder.start_clock()
        while self.step < end and not self._stopping():
            waiting = None
            for dispatch in itertools.chain(self._dispatches(epoch), [None]):
                lines = self._collect(waiting)
                if waiting and not lines and self.diverged_at is None:
                    self.trackers.progress(self.step, self.recorder.line_so_far())
                for step, line in lines:
                    if step == end:
                        return line
                    self.trackers.log(step, line)
                    self.last_line = line
                waiting = dispatch
            if self.decisions.save_due:
                self.save()
                self.recorder.start_clock()
        return {"epoch": self.epochs_done}

    def _dispatches(self, epoch: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Hands steps of an epoch to the device; yields each dispatch's log and length."""
        left = (epoch + 1) * self.recorder.steps_per_epoch - self.step
        train = self.compiled.train
        for window in self.compiled.feed.windows(epoch, self.recorder.steps_per_epoch - left):
            first = window.first
            while left and first < window.steps:
                if self._stopping():
                    return
                count = min(self.decisions.steps, window.steps - first, left)
                self.profile.before(self.step)
                self.state, metrics = train(
                    self.state,
                    window.arrays,
                    window.order,
                    np.int32(first),
                    np.int32(count),
                    self.compiled.hparams,
                    self.session.key,
                )
                for array in metrics.values():
                    array.copy_to_host_async()
                yield metrics, count
                first += count
                left -= count
                self.decisions.look()
                if self.decisions.save_due:  # after a dispatch, so that there is always progress
                    return
            if not left:
                return

    def _stopping(self) -> bool:
        decisions = self.decisions
        return decisions.signal is not None or decisions.late or self.diverged_at is not None

    def _kept_for_good(self) -> bool:
        every = self.session.trainer.keep_every
        return every is not None and self.step % (every * self.recorder.steps_per_epoch) == 0

    def _collect(self, dispatch: tuple[dict[str, jax.Array], int] | None) -> list[tuple[int, Line]]:
        """The log lines that a dispatch, once it is done, completes."""
        if dispatch is None or self.diverged_at is not None:
            return []
        metrics, count = dispatch
        host = jax.device_get(metrics)
        self.compiled.begun()
        diverged_at = int(host.pop("diverged_at"))
        diverged = diverged_at >= 0 and self.session.trainer.on_nan == "stop"
        if diverged:  # the steps after it changed nothing
            self.diverged_at = diverged_at + 1
            count = self.diverged_at - self.step
        seconds = self.recorder.lap(count)
        self.training_seconds += seconds
        self.decisions.pace.took(seconds, count)
        lines = list(self.recorder.add(host, count, flush=diverged))
        self.profile.after(self.step)
        return lines

    def _validate(self) -> Line:
        weights = self.session.experiment.weights(self.state)
        values = self.validation(self.compiled.evaluate, weights, self.compiled.hparams)
        return {f"val/{name}": value for name, value in values.items()}
