"""What a run hands to the outside: one small protocol, and the fan-out over several trackers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UserError

log = logging.getLogger(__name__)

SUCCESS = frozenset({"finished", "stopped_early"})
"""The statuses of a run that did what was asked of it."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told about a run before its first step."""

    directory: Path
    """The run folder; it exists."""
    name: str
    """For people, such as `lenet5_mnist_ab12cd`."""
    config: dict
    """The composed config as plain dicts, resolved."""
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    parameters: int
    start_step: int | None = None
    """The step of the checkpoint that the run goes on from; None for a new run."""


class Tracker:
    """The protocol: follows one run. Subclasses inherit what they have no use for."""

    slow_to_start = False
    """Whether a run should go on while it starts, in a process beside it."""

    may_stop = False
    """Whether a line can make it ask the run to stop, which then must not run ahead of it."""

    @property
    def kind(self) -> str:
        """What to call it in a message."""
        return type(self).__name__

    @property
    def location(self) -> str | None:
        """Where else than in the run folder the run can be seen: an address or a command."""
        return None

    def warm_up(self) -> None:
        """Import what takes long; a tracker that is slow to start may be asked to, before."""

    def start(self, run: RunInfo) -> None:
        """Begin, before the first step. A `UserError` ends the run."""

    def status(self, text: str) -> None:
        """What the run is busy with outside its steps, such as `compiling`."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record plain Python floats; steps never decrease."""

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show where a run is between two lines; the scalars are those of the line so far."""

    def figure(self, step: int, name: str, path: Path) -> None:
        """Record a picture, a PNG file, under a metric-like name: `test/confusion_matrix`."""

    def animation(self, step: int, name: str, path: Path) -> None:
        """Record a moving picture, a GIF file."""

    def model(self, path: Path) -> None:
        """Offer the finished model, as its checkpoint folder."""

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        """End with `finished`, `stopped_early`, `interrupted`, `diverged` or `failed`."""


class Trackers(Tracker):
    """Several trackers as one.

    Bookkeeping must not cost a night of training, so a tracker that raises is finished and dropped
    with one warning. A `UserError` passes through: the record itself cannot be kept.
    """

    def __init__(self, trackers: Iterable[Tracker]):
        self.trackers = list(trackers)

    @property
    def may_stop(self) -> bool:  # type: ignore[override]
        return any(tracker.may_stop for tracker in self.trackers)

    @property
    def location(self) -> str | None:
        return next((where for t in self.trackers if (where := t.location)), None)

    def start(self, run: RunInfo) -> None:
        self._each(lambda t: t.start(run))

    def status(self, text: str) -> None:
        self._each(lambda t: t.status(text))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._each(lambda t: t.log(step, scalars))

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        self._each(lambda t: t.progress(step, scalars))

    def figure(self, step: int, name: str, path: Path) -> None:
        self._each(lambda t: t.figure(step, name, path))

    def animation(self, step: int, name: str, path: Path) -> None:
        self._each(lambda t: t.animation(step, name, path))

    def model(self, path: Path) -> None:
        self._each(lambda t: t.model(path))

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        """Finish each tracker, even when one before it raises; the location joins the summary."""
        if self.location:
            summary = {**summary, "wandb": self.location}
        self._each(lambda t: t.finish(summary, status), last=True)

    def _each(self, call: Callable[[Tracker], None], last: bool = False) -> None:
        failed: UserError | None = None
        for tracker in list(self.trackers):
            try:
                call(tracker)
            except UserError as error:
                if not last:
                    raise
                failed = failed or error
            except Exception as error:
                self.trackers.remove(tracker)
                log.warning(
                    "%s is dropped from this run: %s: %s", tracker.kind, type(error).__name__, error
                )
                log.debug("traceback", exc_info=True)
                if not last:
                    with contextlib.suppress(Exception):
                        tracker.finish({}, "failed")
        if failed:
            raise failed
