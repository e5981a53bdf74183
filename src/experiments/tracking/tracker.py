"""Trackers, which are callbacks that record or show a run; several callbacks as one.

The config group `logger` is one choice or several together. With `logger=[wandb,tensorboard]` the
keys of W&B are those of the group, `logger.project`; those of any other tracker lie below its name,
`logger.tensorboard`. In the group `callbacks` each callback lies below its name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from asyncio import CancelledError
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.core.callback import (
    Callback,
    RunInfo,
    StopTraining,
    ValidationPredictions,
    callback_nodes,
)
from experiments.core.config import build
from experiments.errors import UserError
from experiments.tracking.log_file import TRACEBACK

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

ERRORS = (Exception, SystemExit, CancelledError)  # clients exit, or cancel what they wait for
Kind = TypeVar("Kind", bound=Callback)
SUCCESS = frozenset({"finished", "stopped_early"})  # statuses of a run that ended as configured


class Tracker(Callback):
    """A callback that records a run or shows it, here or elsewhere."""

    slow_to_start = False
    """True of a tracker to call in the background."""

    takes_model = False
    """True if it wants the checkpoint of the finished run."""

    @property
    def location(self) -> str | None:
        """The address of the run, or the command that shows it; None for the run folder alone."""
        return None

    def status(self, text: str) -> None:
        """Show what the run is doing outside its steps, such as `compiling`."""

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show the run between two log lines; the scalars are those of the line so far."""

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """Take the counts [bins] of a quantity between edges [bins + 1]."""

    def predictions(self, step: int, name: str, columns: Mapping[str, np.ndarray]) -> None:
        """Take predictions as the columns of a table, by name [N], such as `predictions/test`."""

    def model(self, path: Path) -> None:
        """Offer the finished model, as its checkpoint folder."""


class Trackers(Tracker):
    """Several callbacks, trackers among them, as one.

    An error of a callback must not end a training: one that raises is finished and dropped with one
    warning, and one that cannot show a picture or a table goes on without. What an essential one
    raises passes through, such as the run's own record, and a `UserError` before the first step.

    Attributes:
      stop_reason: why a callback asks the run to stop; None if none does.
    """

    def __init__(self, trackers: Iterable[Callback]):
        self.trackers = list(trackers)
        self.stop_reason: str | None = None

    @property
    def may_stop(self) -> bool:
        return any(callback.may_stop for callback in self.trackers)

    @property
    def sees_epochs(self) -> bool:
        return any(callback.sees_epochs for callback in self.trackers)

    @property
    def takes_model(self) -> bool:  # type: ignore[override]
        return any(tracker.takes_model for tracker in self._of(Tracker))

    @property
    def location(self) -> str | None:
        return next(iter(self.locations.values()), None)

    @property
    def locations(self) -> dict[str, str]:
        """The location of each tracker that has one, by its name: `wandb`."""
        found: dict[str, str] = {}
        for tracker in self._of(Tracker):
            with contextlib.suppress(*ERRORS):  # of a client that has died
                if isinstance(tracker, Trackers):
                    found |= tracker.locations
                elif where := tracker.location:
                    found[type(tracker).__name__.lower()] = where
        return found

    def start(self, run: RunInfo) -> None:
        self._forward("start", run)

    def status(self, text: str) -> None:
        self._forward("status", text, to=Tracker)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("log", step, scalars)

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("progress", step, scalars, to=Tracker)

    def on_epoch_end(
        self,
        step: int,
        weights: dict[str, np.ndarray],
        metrics: dict[str, float],
        predictions: ValidationPredictions,
    ) -> None:
        self._forward("on_epoch_end", step, weights, metrics, predictions)

    def figure(self, step: int, name: str, path: Path) -> None:
        self._forward("figure", step, name, path)

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        self._forward("histogram", step, name, counts, edges, to=Tracker)

    def predictions(self, step: int, name: str, columns: Mapping[str, np.ndarray]) -> None:
        self._forward("predictions", step, name, columns, to=Tracker)

    def model(self, path: Path) -> None:
        self._forward("model", path, to=Tracker)

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        """Finish each tracker, even when one before it raises; locations join the summary."""
        self._forward("finish", {**summary, **self.locations}, status)

    def _of(self, kind: type[Kind]) -> list[Kind]:
        return [callback for callback in self.trackers if isinstance(callback, kind)]

    def _forward(self, method: str, *arguments: Any, to: type[Callback] = Callback) -> Any:
        failed: BaseException | None = None
        for tracker in self._of(to):
            try:
                getattr(tracker, method)(*arguments)
            except StopTraining as asked:
                self.stop_reason = self.stop_reason or f"{type(tracker).__name__}: {asked}"
            except ERRORS as error:
                if self._ends_run(tracker, method, error):
                    failed = failed or error
                    if method != "finish":
                        break
                elif method in ("figure", "predictions", "model"):
                    what = arguments[1] if method == "predictions" else arguments[-1]
                    log.warning("%s has no %s: %s", type(tracker).__name__, what, error)
                else:
                    self.trackers.remove(tracker)
                    drop(tracker, error, finish=method != "finish")
        if failed:
            raise failed

    def _ends_run(self, tracker: Callback, method: str, error: BaseException) -> bool:
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
    def locations(self) -> dict[str, str]:
        return self._queue.submit(lambda: super(Background, self).locations).result()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("log", step, dict(scalars))  # the caller may change its own

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        self._forward("finish", summary, status).result()

    def _forward(self, method: str, *arguments: Any, **options: Any) -> Future[None]:
        return self._queue.submit(super()._forward, method, *arguments, **options)

    def _ends_run(self, tracker: Callback, method: str, error: BaseException) -> bool:
        return False


def chosen(config: Mapping[str, Any]) -> list[Callback]:
    """Return the trackers and callbacks of a config, slow ones in the background."""
    every = [build(node) for node in callback_nodes(config).values()]
    return [Background(c) if isinstance(c, Tracker) and c.slow_to_start else c for c in every]


def drop(tracker: Callback, error: BaseException, *, finish: bool = True) -> None:
    """Log that a callback raised an error and is no longer called, and finish it."""
    name = type(tracker).__name__
    full = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    message = f"{name} is dropped from this run: {type(error).__name__}: {error}"
    for_files = {TRACEBACK: "".join(traceback.format_exception(error)).rstrip()}
    log.warning(message, exc_info=error if full else None, extra=for_files)
    if finish:
        with contextlib.suppress(*ERRORS):
            tracker.finish({}, "failed")
