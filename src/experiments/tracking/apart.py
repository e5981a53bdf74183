"""A tracker with a client that takes long to start, in the process beside the run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import RunInfo, Tracker
from experiments.training.helper import ENDED, helper

_numbers = itertools.count()


class Apart(Tracker):
    """Hands another tracker what it is told, in order; the run does not wait for it.

    What the tracker raises there comes out of a later call. The end is waited for.
    """

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self._number = next(_numbers)
        self._started = False
        self._pending: list[Future] = []

    @property
    def kind(self) -> str:
        return self.tracker.kind

    @property
    def location(self) -> str | None:
        try:
            self._wait()
            return helper().submit("tracking", _location, self._number).result()
        except Exception:  # which comes out of whatever it is told next
            return None

    def start(self, run: RunInfo) -> None:
        self._started = True
        self._pending.append(
            helper().submit("tracking", _take, self._number, self.tracker, dict(os.environ))
        )
        self._later("start", run)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._later("log", step, dict(scalars))

    def figure(self, step: int, name: str, path: Path) -> None:
        self._later("figure", step, name, path)

    def animation(self, step: int, name: str, path: Path) -> None:
        self._later("animation", step, name, path)

    def model(self, path: Path) -> None:
        self._later("model", path)
        self._wait()

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if not self._started:
            return
        try:
            self._wait()
        finally:
            helper().submit("tracking", _finish, self._number, dict(summary), status).result()

    def _later(self, name: str, *arguments: Any) -> None:
        while self._pending and self._pending[0].done():
            self._first()
        self._pending.append(helper().submit("tracking", _call, self._number, name, *arguments))

    def _wait(self) -> None:
        while self._pending:
            self._first()

    def _first(self) -> None:
        """Waits for the first call that is pending; one that failed does so for good."""
        self._pending[0].result()
        self._pending.pop(0)


# ---------------------------------------------------------------------- in the other process

_trackers: dict[int, Tracker] = {}
_adopted: set[str] = set()  # names of the environment that are the run's; clients add their own


def _take(number: int, tracker: Tracker, environment: dict[str, str]) -> None:
    for name in _adopted - environment.keys():
        os.environ.pop(name, None)
    _adopted.clear()
    _adopted.update(environment)
    os.environ.update(environment)
    _trackers[number] = tracker


def _taken(number: int) -> Tracker:
    if number not in _trackers:  # another process had it
        raise ChildProcessError(ENDED)
    return _trackers[number]


def _call(number: int, name: str, *arguments: Any) -> None:
    getattr(_taken(number), name)(*arguments)


def _location(number: int) -> str | None:
    return _taken(number).location


def _finish(number: int, summary: Mapping[str, object], status: str) -> None:
    tracker = _taken(number)
    del _trackers[number]
    tracker.finish(summary, status)
