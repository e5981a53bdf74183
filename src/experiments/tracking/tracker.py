"""The protocol of a tracker, several trackers as one, and those that the config asks for.

The config group `logger` is one choice or several together. With `logger=[wandb,tensorboard]` the
keys of W&B are those of the group, `logger.project`; those of any other tracker lie below its name,
`logger.tensorboard`.
"""

import contextlib
import logging
from asyncio import CancelledError
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.core.config import build, tracker_nodes
from experiments.errors import UserError

log = logging.getLogger(__name__)

ERRORS = (Exception, SystemExit, CancelledError)  # clients exit, or cancel what they wait for
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

    essential = False
    """True of the run's own record: an error of any other tracker ends no run."""

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

    An error of a tracker must not end a training: one that raises is finished and dropped with one
    warning, and one that cannot show a picture goes on without. Only what the run's own record
    raises passes through, and a `UserError` before the first step.
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
        with contextlib.suppress(*ERRORS):  # of a client that has died
            return next((where for t in self.trackers if (where := t.location)), None)
        return None

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

    def _forward(self, method: str, *arguments: Any) -> Any:
        failed: BaseException | None = None
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*arguments)
            except ERRORS as error:
                if self._ends_run(tracker, method, error):
                    failed = failed or error
                    if method != "finish":
                        break
                elif method in ("figure", "model"):
                    log.warning("%s has no %s: %s", type(tracker).__name__, arguments[-1], error)
                else:
                    self.trackers.remove(tracker)
                    drop(tracker, error, finish=method != "finish")
        if failed:
            raise failed

    def _ends_run(self, tracker: Tracker, method: str, error: BaseException) -> bool:
        return tracker.essential or (method == "start" and isinstance(error, UserError))


class Background(Trackers):
    """A tracker that is called in order in a thread of its own; the run waits for `finish` alone.

    No error of it ends the run.

    It imports its client in `start`, when the data are read. Not earlier: while NumPy, Grain or
    TensorFlow Datasets are imported in one thread, imports in another one may fail, as the latter
    two replace Python's import function for a moment.
    """

    def __init__(self, tracker: Tracker):
        super().__init__([tracker])
        self._queue = ThreadPoolExecutor(1, thread_name_prefix=type(tracker).__name__)

    @property
    def location(self) -> str | None:
        return self._queue.submit(lambda: super(Background, self).location).result()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("log", step, dict(scalars))  # the caller may change its own

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        self._forward("finish", summary, status).result()

    def _forward(self, method: str, *arguments: Any) -> Future[None]:
        return self._queue.submit(super()._forward, method, *arguments)

    def _ends_run(self, tracker: Tracker, method: str, error: BaseException) -> bool:
        return False


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
        with contextlib.suppress(*ERRORS):
            tracker.finish({}, "failed")
