"""The protocol of a tracker, several trackers as one, and those that the config asks for.

The config group `logger` is one choice or several together. With `logger=[wandb,tensorboard]` the
keys of W&B are those of the group, `logger.project`; those of any other tracker lie below its name,
`logger.tensorboard.flush_seconds`.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.core.config import build, tracker_nodes
from experiments.errors import UserError

log = logging.getLogger(__name__)

SUCCESS = frozenset({"finished", "stopped_early"})  # statuses of a run that ended as configured


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that are known before its first step.

    Args:
        directory: the run folder; it exists.
        name: for people, such as `lenet5_mnist_ab12cd`.
        config: the composed config as plain dicts, resolved.
        total_steps, steps_per_epoch, batch_size, parameters: sizes of the training and the model.
        start_step: the step of the checkpoint that the run resumes from; None for a new run.
    """

    directory: Path
    name: str
    config: dict
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    parameters: int
    start_step: int | None = None


class Tracker:
    """The protocol: a tracker follows one run. Subclasses override the calls that they use."""

    slow_to_start = False
    """True of a tracker to call in the background."""

    may_stop = False
    """True if a log line can make it ask the run to stop, so that the run has to wait for it."""

    takes_model = False
    """True if it wants the checkpoint of the finished run."""

    @property
    def location(self) -> str | None:
        """The address of the run, or the command that shows it; None for the run folder alone."""
        return None

    def start(self, run: RunInfo) -> None:
        """Begin, before the first step. A `UserError` ends the run."""

    def status(self, text: str) -> None:
        """Show what the run is doing outside its steps, such as `compiling`."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record plain Python floats; steps never decrease."""

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show the run between two log lines; the scalars are those of the line so far."""

    def figure(self, step: int, name: str, path: Path) -> None:
        """Record a picture, a PNG file, or an animation, a GIF file."""

    def model(self, path: Path) -> None:
        """Offer the finished model, as its checkpoint folder."""

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        """End with `finished`, `stopped_early`, `interrupted`, `diverged` or `failed`."""


class Trackers(Tracker):
    """Several trackers as one.

    An error of a tracker must not end a training, so a tracker that raises is finished and dropped
    with one warning. A `UserError` passes through: the run's own record cannot be written.
    """

    def __init__(self, trackers: Iterable[Tracker]):
        self.trackers = list(trackers)

    @property
    def may_stop(self) -> bool:  # type: ignore[override]
        return any(tracker.may_stop for tracker in self.trackers)

    @property
    def takes_model(self) -> bool:  # type: ignore[override]
        return any(tracker.takes_model for tracker in self.trackers)

    @property
    def location(self) -> str | None:
        return next((where for t in self.trackers if (where := t.location)), None)

    def start(self, run: RunInfo) -> None:
        self._forward("start", run)

    def status(self, text: str) -> None:
        self._forward("status", text)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("log", step, scalars)

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("progress", step, scalars)

    def figure(self, step: int, name: str, path: Path) -> None:
        self._forward("figure", step, name, path)

    def model(self, path: Path) -> None:
        self._forward("model", path)

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        """Finish each tracker, even when one before it raises; the location joins the summary."""
        if self.location:
            summary = {**summary, "wandb": self.location}
        self._forward("finish", summary, status)

    def _forward(self, method: str, *arguments: Any) -> None:
        failed: UserError | None = None
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*arguments)
            except UserError as error:
                if method != "finish":
                    raise
                failed = failed or error
            except (Exception, SystemExit) as error:  # Rich exits where a pipe is closed
                self.trackers.remove(tracker)
                drop(tracker, error, finish=method != "finish")
        if failed:
            raise failed


class Background(Trackers):
    """A tracker that is called in order in a thread of its own; the run waits for `finish` alone.

    When it raises, whatever it raises, it is finished and dropped with one warning.

    It imports its client in `start`, when the data are read. Not earlier: while NumPy, Grain or
    TensorFlow Datasets are imported in one thread, imports in another one may fail, as the latter
    two replace Python's import function for a moment.
    """

    def __init__(self, tracker: Tracker):
        super().__init__([tracker])
        self._queue = ThreadPoolExecutor(1, thread_name_prefix=type(tracker).__name__)

    @property
    def location(self) -> str | None:
        return self._later(lambda: self.trackers[0].location).result()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("log", step, dict(scalars))  # the caller may change its own

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        self._later(lambda: self.trackers[0].finish(summary, status)).result()

    def _forward(self, method: str, *arguments: Any) -> None:
        self._later(lambda: getattr(self.trackers[0], method)(*arguments))

    def _later(self, call: Callable[[], Any]) -> Future[Any]:
        return self._queue.submit(self._call, call)

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call() if self.trackers else None
        except (Exception, SystemExit) as error:  # some clients exit where others raise
            drop(self.trackers.pop(), error)


def chosen(logger: Mapping[str, Any]) -> list[Tracker]:
    """Return the trackers of a config, slow ones in the background."""
    trackers = [build(node) for node in tracker_nodes(logger).values()]
    return [Background(t) if t.slow_to_start else t for t in trackers]


def drop(tracker: Tracker, error: BaseException, *, finish: bool = True) -> None:
    """Log that a tracker raised an error and is no longer called, and finish it."""
    name = type(tracker).__name__
    log.warning("%s is dropped from this run: %s: %s", name, type(error).__name__, error)
    log.debug("traceback", exc_info=error)
    if finish:
        with contextlib.suppress(Exception, SystemExit):
            tracker.finish({}, "failed")
