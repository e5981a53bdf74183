"""A tracker that takes long to start, beside the run instead of in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import RunInfo, Tracker

_thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")  # clients are not made for several


class Behind(Tracker):
    """Hands another tracker what it is told, in order, in a thread that the run does not wait for.

    What the tracker raises there comes out of a later call. The end is waited for.
    """

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self._pending: list[Future] = []

    @property
    def kind(self) -> str:
        return self.tracker.kind

    @property
    def location(self) -> str | None:
        self._wait()
        return self.tracker.location

    def start(self, run: RunInfo) -> None:
        self._later(self.tracker.start, run)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._later(self.tracker.log, step, dict(scalars))

    def figure(self, step: int, name: str, path: Path) -> None:
        self._later(self.tracker.figure, step, name, path)

    def animation(self, step: int, name: str, path: Path) -> None:
        self._later(self.tracker.animation, step, name, path)

    def model(self, path: Path) -> None:
        self._wait()
        self.tracker.model(path)

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        try:
            self._wait()
        finally:
            self.tracker.finish(summary, status)

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()
        self._pending.append(_thread.submit(call, *arguments))

    def _wait(self) -> None:
        while self._pending:
            self._pending.pop(0).result()
