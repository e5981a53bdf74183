"""The trackers that the config group `logger` asks for, slow ones called in the background.

The group is one choice or several together. With `logger=[wandb,tensorboard]` the keys of W&B are
those of the group, `logger.project`; those of any other tracker lie below its name,
`logger.tensorboard.flush_seconds`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from experiments.core.config import build, tracker_nodes
from experiments.tracking.tracker import Forwarding, Tracker, drop


def chosen(logger: Mapping[str, Any]) -> list[Tracker]:
    """Return the trackers of a config, slow ones in the background."""
    trackers = [build(node) for node in tracker_nodes(logger).values()]
    return [Background(t) if t.slow_to_start else t for t in trackers]


class Background(Forwarding):
    """Another tracker, called in order in a thread of its own; the run waits for `finish` alone.

    A tracker that raises is finished and dropped with one warning, whatever it raises.

    It imports its client in `start`, when the data are read. Not earlier: while NumPy, Grain or
    TensorFlow Datasets are imported in one thread, imports in another one may fail, as the latter
    two replace Python's import function for a moment.
    """

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self._queue = ThreadPoolExecutor(1, thread_name_prefix=type(tracker).__name__)
        self._dropped = False
        self.takes_model = tracker.takes_model

    @property
    def location(self) -> str | None:
        return self._later(lambda: self.tracker.location).result()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._forward("log", step, dict(scalars))  # the caller may change its own

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        self._later(self.tracker.finish, summary, status).result()

    def _forward(self, method: str, *arguments: Any) -> None:
        self._later(getattr(self.tracker, method), *arguments)

    def _later(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._queue.submit(self._call, function, *arguments)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._dropped:
            return None
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:  # some clients exit where others raise
            self._dropped = True
            drop(self.tracker, error)
            return None
