"""Training: the one place with side effects, in the order in which they happen."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import State, count_parameters
from experiments.tracking.tracker import RunInfo, Trackers
from experiments.training.evaluation import Predictions
from experiments.training.feed import ResidentFeed, StreamedFeed
from experiments.training.program import UNTRACEABLE, Programs, traceable
from experiments.training.recorder import Line, Recorder
from experiments.training.report import draw_figures
from experiments.training.session import Session
from experiments.training.signals import StopRequest
from experiments.training.watch import Watch

log = logging.getLogger(__name__)

DISPATCH_SECONDS = 0.25  # how long one dispatch should keep the device busy


def fit(session: Session, directory: Path, trackers: Trackers, stop: StopRequest) -> dict[str, Any]:
    """Trains, validates every epoch, tests the best weights once; returns the summary."""
    experiment = session.experiment
    trackers.status("compiling")
    with ThreadPoolExecutor() as pool:
        compiled = pool.submit(compile_programs, session)
        # what follows needs no program and goes on while XLA works
        state = jax.device_put(experiment.init(session.hparams, session.key), session.replicated)
        parameters = count_parameters(state.params)
        trackers.start(
            RunInfo(
                directory=directory,
                name=session.config["name"],
                config=dict(session.config),
                total_steps=experiment.total_steps,
                steps_per_epoch=experiment.steps_per_epoch,
                batch_size=session.batch_size,
                parameters=parameters,
            )
        )
        run = Run(session, compiled.result(), trackers, stop, state)
    started = time.perf_counter()
    status = run.train()
    summary = run.last_line | {
        "best": run.watch.best,
        "status": status,
        "seconds": round(time.perf_counter() - started, 3),
        "examples_per_second": run.examples_per_second,
        "parameters": parameters,
    }
    if status in ("finished", "stopped_early"):
        trackers.status("testing")
        test, predictions = run.test()
        summary |= test
        trackers.log(run.step, {"epoch": run.epochs_done, **test})
        if session.trainer.figures:
            draw_figures(session, directory, trackers, run.step, predictions)
    trackers.finish(summary, status)
    return summary


@dataclass(frozen=True)
class Compiled:
    """The programs of a run, the training data that they read, and their traced inputs."""

    train: Callable
    evaluate: Callable
    feed: ResidentFeed | StreamedFeed
    hparams: dict[str, np.float32]


def compile_programs(session: Session) -> Compiled:
    """Compiles training and evaluation side by side.

    Every hyperparameter is a traced input unless the program turns out to need its value.
    """
    experiment, key, hparams = session.experiment, session.key, session.hparams
    feed = session.feed()
    programs = Programs(
        experiment,
        session.mesh,
        batch_size=session.batch_size,
        max_steps=session.trainer.max_steps_per_dispatch,
    )
    state = experiment.abstract_state(hparams)
    batch = session.evaluator("validation").shapes()
    with ThreadPoolExecutor() as pool:
        evaluate = pool.submit(programs.compile_eval, experiment.weights(state), batch, hparams)
        try:
            train = programs.compile_train(state, feed.arrays, hparams, key)
        except UNTRACEABLE:
            hparams = traceable(experiment, hparams, feed.arrays, session.batch_size)
            for name in sorted(set(session.hparams) - set(hparams)):
                log.debug("%s is a constant of the program: it cannot be traced", name)
            train = programs.compile_train(state, feed.arrays, hparams, key)
            evaluate = pool.submit(programs.compile_eval, experiment.weights(state), batch, hparams)
        return Compiled(train, evaluate.result(), feed, hparams)


class Run:
    """A training under way: compiled programs, the state on the device, and what was seen."""

    def __init__(
        self,
        session: Session,
        compiled: Compiled,
        trackers: Trackers,
        stop: StopRequest,
        state: State,
    ):
        trainer, experiment = session.trainer, session.experiment
        self.session, self.compiled, self.trackers, self.stop = session, compiled, trackers, stop
        self.state, self.hparams = state, compiled.hparams
        self.validation = session.evaluator("validation")
        self.copy_weights = jax.jit(lambda s: jax.tree.map(jnp.copy, experiment.weights(s)))
        self.best_weights = self.copy_weights(state)
        metric, mode = experiment.objective(session.hparams).monitor
        if trainer.monitor not in (None, metric):
            metric, mode = trainer.monitor, "max" if "accuracy" in trainer.monitor else "min"
        self.watch = Watch(metric, trainer.monitor_mode or mode, trainer.patience)
        self.recorder = Recorder(trainer.log_every, experiment.steps_per_epoch, session.batch_size)
        self.pace = Pace(trainer.max_steps_per_dispatch)
        self.last_line: Line = {}
        self.diverged_at: int | None = None
        self.training_seconds = 0.0

    @property
    def step(self) -> int:
        """Steps done."""
        return self.recorder.step

    @property
    def epochs_done(self) -> float:
        """Epochs trained, in fractions."""
        return self.step / self.session.experiment.steps_per_epoch

    @property
    def examples_per_second(self) -> float:
        """Training speed over the whole run, evaluation left out."""
        return self.step * self.session.batch_size / max(self.training_seconds, 1e-9)

    def train(self) -> str:
        """All epochs; returns the status that the run ends with."""
        trainer = self.session.trainer
        self.deadline = time.perf_counter() + (trainer.max_time or float("inf"))
        self.recorder.start_clock()
        for epoch in range(trainer.epochs):
            step, line = self._epoch(epoch)
            if self.diverged_at is not None:
                log.warning("loss or gradient is not finite at step %d", self.diverged_at)
                return self._end(step, line, "diverged")
            if self.stop.name is not None and self.step % self.recorder.steps_per_epoch:
                log.warning("stopped by %s after step %d", self.stop.name, self.step)
                return self._end(step, line, "interrupted")
            line |= self.recorder.end_epoch() | self._validate()
            if self.watch.better(line):
                self.best_weights = self.copy_weights(self.state)
            if reason := self._enough(line):
                log.info("stopping early: %s", reason)
                return self._end(step, line, "stopped_early")
            self._end(step, line, "running")
        return "finished"

    def test(self) -> tuple[Line, Predictions]:
        """`test/*` of the best weights, and the predictions."""
        split = self.session.evaluator("test")
        values, predictions = split.predict(self.compiled.evaluate, self.best_weights, self.hparams)
        return {f"test/{name}": value for name, value in values.items()}, predictions

    def _end(self, step: int, line: Line, status: str) -> str:
        """Logs the last line of an epoch, whole or cut short."""
        if line:
            self.trackers.log(step, line)
            self.last_line = line
        return status

    def _enough(self, line: Line) -> str | None:
        """Why the run should end after this epoch, if it should."""
        trainer = self.session.trainer
        if self.watch.exhausted:
            return f"val/{self.watch.metric} has not improved for {trainer.patience} epochs"
        if time.perf_counter() > self.deadline:
            return f"trainer.max_time={trainer.max_time:g} seconds have passed"
        if trainer.target_loss is not None and line["train/epoch_loss"] <= trainer.target_loss:
            return f"trainer.target_loss={trainer.target_loss:g} is reached"
        return None

    def _epoch(self, epoch: int) -> tuple[int, Line]:
        """Trains an epoch and logs its lines, all but the last, which is returned with its step.

        The metrics of a dispatch are fetched while the next one runs: the device never waits for
        the log.
        """
        last: tuple[int, Line] = (self.step, {})
        waiting = None
        for dispatch in itertools.chain(self._dispatches(epoch), [None]):
            for line in self._collect(waiting):
                if last[1]:
                    self.trackers.log(*last)
                last = line
            waiting = dispatch
        return last

    def _dispatches(self, epoch: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """Hands the steps of an epoch to the device; yields each dispatch's log and length."""
        left = self.session.experiment.steps_per_epoch
        for window in self.compiled.feed.epoch(epoch):
            first = 0
            while left and first < window.steps:
                late = time.perf_counter() > self.deadline
                if self.stop.name is not None or self.diverged_at is not None or late:
                    return
                count = min(self.pace.steps, window.steps - first, left)
                self.state, metrics = self.compiled.train(
                    self.state,
                    window.arrays,
                    window.order,
                    np.int32(first),
                    np.int32(count),
                    self.hparams,
                    self.session.key,
                )
                for array in metrics.values():
                    array.copy_to_host_async()
                yield metrics, count
                first += count
                left -= count
            if not left:
                return

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
        return list(self.recorder.add(host, count, flush=diverged))

    def _validate(self) -> Line:
        weights = self.session.experiment.weights(self.state)
        values = self.validation(self.compiled.evaluate, weights, self.hparams)
        self.recorder.start_clock()
        return {f"val/{name}": value for name, value in values.items()}


class Pace:
    """How many steps to hand to the device at once, from how long steps take."""

    def __init__(self, most: int):
        self.most, self.steps = most, 1

    def took(self, seconds: float, count: int) -> None:
        """Learns from a finished dispatch."""
        self.steps = int(np.clip(DISPATCH_SECONDS * count / max(seconds, 1e-9), 1, self.most))
