"""Who runs what: claims on a shared file system that one worker wins and a dead one loses.

A claim is a file `<key>.<attempt>`, made with O_EXCL, which one process alone can do, on NFS too.
While its worker lives it touches the file. A claim that was not touched for `heartbeat` seconds is
stale, and whoever then makes the file of the next attempt has taken it over. Times are compared
with a file touched on the same file system, never with the clock of a machine.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

RELEASED, DIED = 0, 1  # times of last touch that say: given back, known to be dead


@dataclass(frozen=True)
class Claim:
    """An attempt at what `key` names, by one worker."""

    key: str
    attempt: int
    path: Path = field(compare=False)
    touched: float = field(compare=False, default=0.0)

    @property
    def next_path(self) -> Path:
        """The file of the attempt that would take this one over."""
        return self.path.with_name(f"{self.key}.{self.attempt + 1}")


class Claims:
    """The claims in `folder`, seen and made by the worker called `worker`."""

    def __init__(self, folder: Path, worker: str, heartbeat: float):
        self.folder, self.worker, self.heartbeat = folder, worker, heartbeat
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> dict[str, Claim]:
        """The last attempt at each key that was ever claimed."""
        found: dict[str, Claim] = {}
        for claim in self._all():
            if claim.key not in found or found[claim.key].attempt < claim.attempt:
                found[claim.key] = claim
        return found

    def take(self, key: str, previous: Claim | None, now: float) -> Claim | None:
        """The claim on `key`, if nobody holds it; `previous` is its last attempt as of `now`."""
        if previous is not None and not self.stale(previous, now):
            return None
        attempt = 0 if previous is None else previous.attempt + 1
        path = self.folder / f"{key}.{attempt}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as file:
            host = os.uname().nodename
            json.dump({"worker": self.worker, "host": host, "pid": os.getpid()}, file)
        return Claim(key, attempt, path)

    def stale(self, claim: Claim, now: float) -> bool:
        """Whether the worker behind a claim is gone."""
        return now - claim.touched > self.heartbeat

    def deaths(self, key: str) -> int:
        """How many attempts at `key` ended with the death of their worker."""
        attempts = sorted((c for c in self._all() if c.key == key), key=lambda c: c.attempt)
        return sum(claim.touched != RELEASED for claim in attempts[:-1])

    def now(self) -> float:
        """The time by the clock that also says when claims were touched."""
        clock = self.folder / f".clock_{self.worker}"
        clock.touch()
        os.utime(clock)
        return clock.stat().st_mtime

    def bury(self, worker: str) -> int:
        """Makes the claims of a worker that is known to be dead free at once; returns how many."""
        held = [c for c in self.latest().values() if c.touched > DIED and owner(c) == worker]
        for claim in held:
            os.utime(claim.path, (DIED, DIED))
        return len(held)

    def _all(self) -> list[Claim]:
        claims = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                key, _, attempt = entry.name.rpartition(".")
                if key and attempt.isdigit():
                    touched = entry.stat().st_mtime
                    claims.append(Claim(key, int(attempt), Path(entry.path), touched))
        return claims


def owner(claim: Claim) -> str | None:
    """The worker that made a claim; None if it died while doing so."""
    try:
        return json.loads(claim.path.read_text())["worker"]
    except (OSError, ValueError):
        return None


class Heart:
    """Touches the claims of a living worker from a thread of its own.

    `on_beat` is called every second or so, for whatever else a worker should notice early.
    """

    def __init__(self, heartbeat: float, on_beat: Callable[[], None]):
        self.every, self.on_beat = min(heartbeat / 5, 1.0), on_beat
        self.touch_every = heartbeat / 5
        self._lost: dict[Claim, Callable[[], None]] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def keep(self, claim: Claim, lost: Callable[[], None]) -> None:
        """Touches `claim` from now on; calls `lost` if another worker takes it over."""
        with self._lock:
            self._lost[claim] = lost

    def drop(self, claim: Claim) -> None:
        """Touches `claim` no more."""
        with self._lock:
            self._lost.pop(claim, None)

    def release(self, claim: Claim) -> None:
        """Gives `claim` back for anybody to take at once."""
        self.drop(claim)
        os.utime(claim.path, (RELEASED, RELEASED))

    def _beat(self) -> None:
        waited = 0.0
        while not self._stop.wait(self.every):
            waited += self.every
            self.on_beat()
            if waited < self.touch_every:
                continue
            waited = 0.0
            with self._lock:
                for claim, lost in list(self._lost.items()):
                    if claim.next_path.exists():
                        lost()
                    else:
                        with contextlib.suppress(OSError):  # a file system that is away returns
                            os.utime(claim.path)
