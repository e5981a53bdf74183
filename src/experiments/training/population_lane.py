"""One run of a population, as the host sees it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import RunInfo, Trackers
from experiments.training.recorder import Line
from experiments.training.session import Session
from experiments.training.signals import StopRequest
from experiments.training.watch import Watch


@dataclass(frozen=True)
class Member:
    """A run that is to train in a population: what `training.loop.fit` takes."""

    session: Session
    directory: Path
    trackers: Trackers
    stop: StopRequest


class Lane:
    """A member under way: what was seen of it, and how it ended."""

    def __init__(self, member: Member, parameters: int):
        self.session, self.directory = member.session, member.directory
        self.trackers, self.stop = member.trackers, member.stop
        self.parameters = parameters
        self.watch = Watch.of(self.session)
        self.last_line: Line = {}
        self.status: str | None = None  # how it ended
        self.diverged_at: int | None = None
        self.summary: dict[str, Any] = {}
        self.training_seconds = self.seconds_before = 0.0
        self.started = time.perf_counter()

    def start(self, step: int | None) -> None:
        """Tells the trackers."""
        experiment = self.session.experiment
        self.trackers.start(
            RunInfo(
                directory=self.directory,
                name=self.session.config["name"],
                config=dict(self.session.config),
                total_steps=experiment.total_steps,
                steps_per_epoch=experiment.steps_per_epoch,
                batch_size=self.session.batch_size,
                parameters=self.parameters,
                start_step=step,
            )
        )

    def log(self, step: int, line: Line) -> None:
        """Records a line of metrics."""
        self.last_line = line
        self.trackers.log(step, line)

    def see(self, line: Line) -> bool:
        """Takes note of a validated line, still to be logged; whether its weights are the best."""
        self.last_line = line
        return self.watch.better(line)

    def verdict(self) -> str | None:
        """The status with which it should end after the epochs so far, if it should."""
        trainer = self.session.trainer
        if self.diverged_at is not None:
            return "diverged"
        if self.stop.name is not None:
            return self.stop.status
        loss = self.last_line.get("train/epoch_loss", float("inf"))
        enough = trainer.target_loss is not None and loss <= trainer.target_loss
        late = trainer.max_time is not None and self.seconds > trainer.max_time
        return "stopped_early" if self.watch.exhausted or enough or late else None

    def finish(self, step: int, status: str, tested: Line) -> None:
        """Ends the run with its summary."""
        self.status = status
        ended = {} if self.diverged_at is None else {"diverged_at": self.diverged_at}
        step = self.diverged_at or step
        self.summary = {
            "step": step,
            **self.last_line,
            **self.watch.told,
            **ended,
            "status": status,
            "seconds": round(self.seconds, 3),
            "examples_per_second": step
            * self.session.batch_size
            / max(self.training_seconds, 1e-9),
            "parameters": self.parameters,
            **tested,
        }
        if tested:
            self.trackers.log(step, {"epoch": self.last_line["epoch"], **tested})
        self.trackers.finish(self.summary, status)

    @property
    def seconds(self) -> float:
        """Seconds of training and validation, over all sittings; those of the whole population."""
        return self.seconds_before + time.perf_counter() - self.started

    def progress(self, recorder: dict[str, Any]) -> dict[str, Any]:
        """What a solo run of the same config would save; JSON."""
        return {
            "recorder": recorder,
            "best": self.watch.best,
            "stale": self.watch.stale,
            "last_line": self.last_line,
            "training_seconds": self.training_seconds,
            "seconds": self.seconds,
            "fingerprint": self.session.splits.fingerprint,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes up what `progress` said."""
        self.watch.best, self.watch.stale = saved["best"], saved["stale"]
        self.last_line = saved["last_line"]
        self.training_seconds = saved["training_seconds"]
        self.seconds_before = saved["seconds"]
