"""A training under way: epochs of dispatches, their metrics, validation and checkpoints."""

import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import State, Tree, count_parameters
from experiments.tracking.tracker import Trackers
from experiments.training.checkpoints import Checkpoints, shaped
from experiments.training.compiled import Compiled
from experiments.training.evaluation import Predictions
from experiments.training.nan import blame
from experiments.training.profile import Profile
from experiments.training.recorder import Line, Recorder
from experiments.training.session import Session
from experiments.training.signals import StopRequest
from experiments.training.watch import Watch

log = logging.getLogger(__name__)

DISPATCH_SECONDS = 0.25  # how long one dispatch should keep the device busy


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
        self.session, self.trackers, self.stop, self.shapes = session, trackers, stop, shapes
        self.directory = directory
        self.parameters = count_parameters(shapes.params)
        self.checkpoints: Checkpoints | None = None
        self.validation = session.evaluator("validation")
        self.copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        metric, mode = experiment.objective(session.hparams).monitor
        if trainer.monitor not in (None, metric):
            metric, mode = trainer.monitor, "max" if "accuracy" in trainer.monitor else "min"
        self.watch = Watch(metric, trainer.monitor_mode or mode, trainer.patience)
        self.recorder = Recorder(trainer.log_every, experiment.steps_per_epoch, session.batch_size)
        self.pace = Pace(trainer.max_steps_per_dispatch)
        self.profile = Profile(directory, trainer.profile_steps)
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
        trainer = self.session.trainer
        self.started = self.saved = time.perf_counter()
        self.deadline = self.started + (trainer.max_time or float("inf"))
        steps_per_epoch = self.recorder.steps_per_epoch
        while (epoch := self.step // steps_per_epoch) < trainer.epochs:
            if reason := self._enough():
                log.info("stopping early: %s", reason)
                return "stopped_early"
            if self.stop.name is not None:
                log.warning("stopped by %s after step %d", self.stop.name, self.step)
                return "interrupted"
            before = self.step
            line = self._epoch(epoch)
            if self.diverged_at is not None:
                self._report_divergence(self.diverged_at)
                return "diverged"
            cut_short = self.stop.name is not None and self.step % steps_per_epoch
            if self.step == before or cut_short:
                continue  # to the reason above
            self.last_line = line | self.recorder.end_epoch() | self._validate()
            self.trackers.log(self.step, self.last_line)
            if self.watch.better(self.last_line):
                self.best_weights = self.copy(self.session.experiment.weights(self.state))
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
        summary: dict[str, Any] = {"step": self.step, **self.last_line, "best": self.watch.best}
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

    def save(self) -> None:
        """Saves a checkpoint in the background."""
        if self.checkpoints is None:
            self.checkpoints = Checkpoints(self.directory)
        # the copy is the saver's own: the next step is free to overwrite the state
        self.checkpoints.save(self.step, self.copy(self.state), self.best_weights, self.progress)
        self.saved = time.perf_counter()

    def begin(self, state: State) -> None:
        """Starts from an initial state."""
        self.state = jax.device_put(state, self.session.replicated)
        self.best_weights = self.copy(self.session.experiment.weights(self.state))

    def restore(self) -> None:
        """Goes back to the newest checkpoint."""
        self.checkpoints = Checkpoints(self.directory)
        sharding = self.session.replicated
        best = self.session.experiment.weights(self.shapes)
        self.state, self.best_weights, self.progress = self.checkpoints.restore(
            shaped(self.shapes, sharding), shaped(best, sharding)
        )
        self.checkpoints.discard_after(self.step)

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
        if time.perf_counter() > self.deadline:
            return f"trainer.max_time={trainer.max_time:g} seconds have passed"
        loss = self.last_line.get("train/epoch_loss", float("inf"))
        if trainer.target_loss is not None and loss <= trainer.target_loss:
            return f"trainer.target_loss={trainer.target_loss:g} is reached"
        return None

    def _epoch(self, epoch: int) -> Line:
        """Trains the rest of an epoch and logs its lines, all but the last, which is returned.

        The metrics of a dispatch are fetched while the next one runs: the device never waits for
        the log. Before a checkpoint all of them are fetched, so that it holds one moment.
        """
        end = (epoch + 1) * self.recorder.steps_per_epoch
        self.recorder.start_clock()
        while self.step < end and not self._stopping():
            waiting = None
            for dispatch in itertools.chain(self._dispatches(epoch), [None]):
                for step, line in self._collect(waiting):
                    if step == end:
                        return line
                    self.trackers.log(step, line)
                    self.last_line = line
                waiting = dispatch
            if self._save_due():
                self.save()
                self.recorder.start_clock()
        return {"epoch": self.epochs_done}

    def _dispatches(self, epoch: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Hands steps of an epoch to the device; yields each dispatch's log and length."""
        left = (epoch + 1) * self.recorder.steps_per_epoch - self.step
        for window in self.compiled.feed.windows(epoch, self.recorder.steps_per_epoch - left):
            first = window.first
            while left and first < window.steps:
                if self._stopping():
                    return
                count = min(self.pace.steps, window.steps - first, left)
                self.profile.before(self.step)
                self.state, metrics = self.compiled.train(
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
                if self._save_due():  # after a dispatch, so that there is always progress
                    return
            if not left:
                return

    def _stopping(self) -> bool:
        late = time.perf_counter() > self.deadline
        return self.stop.name is not None or self.diverged_at is not None or late

    def _save_due(self) -> bool:
        every = self.session.trainer.checkpoint_every
        if not self.session.trainer.checkpoints or every is None:
            return False
        return time.perf_counter() - self.saved > every

    def _collect(self, dispatch: tuple[dict[str, jax.Array], int] | None) -> list[tuple[int, Line]]:
        """The log lines that a dispatch, once it is done, completes."""
        if dispatch is None or self.diverged_at is not None:
            return []
        metrics, count = dispatch
        host = jax.device_get(metrics)
        diverged_at = int(host.pop("diverged_at"))
        diverged = diverged_at >= 0 and self.session.trainer.on_nan == "stop"
        if diverged:  # the steps after it changed nothing
            self.diverged_at = diverged_at + 1
            count = self.diverged_at - self.step
        seconds = self.recorder.lap(count)
        self.training_seconds += seconds
        self.pace.took(seconds, count)
        lines = list(self.recorder.add(host, count, flush=diverged))
        self.profile.after(self.step)
        return lines

    def _validate(self) -> Line:
        weights = self.session.experiment.weights(self.state)
        values = self.validation(self.compiled.evaluate, weights, self.compiled.hparams)
        return {f"val/{name}": value for name, value in values.items()}


class Pace:
    """How many steps to hand to the device at once, from how long steps take."""

    def __init__(self, most: int):
        self.most, self.steps = most, 1

    def took(self, seconds: float, count: int) -> None:
        """Learns from a finished dispatch."""
        self.steps = int(np.clip(DISPATCH_SECONDS * count / max(seconds, 1e-9), 1, self.most))
