"""Claims on a shared file system: one worker wins a claim, and a dead one loses it.

A claim is a file `<key>.<attempt>`, made with O_EXCL: only one process succeeds, on NFS too. Its
worker touches the file while it lives. If it was not touched for `heartbeat` seconds, the worker
that makes the file of the next attempt takes the claim over. Times are compared with a file touched
on the same file system, never with the clock of a machine.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

RELEASED, DIED = 0, 1  # times of last touch that mark a claim as given back, its worker as dead


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

    @property
    def worker(self) -> str | None:
        """The worker that made it; None if it died while doing so."""
        try:
            return json.loads(self.path.read_text())["worker"]
        except (OSError, ValueError):
            return None


class Claims:
    """The claims in `folder`, seen and made by the worker called `worker`."""

    def __init__(self, folder: Path, worker: str, heartbeat: float):
        self.folder, self.worker, self.heartbeat = folder, worker, heartbeat
        self._on_loss: dict[Claim, Callable[[], None]] = {}  # of the claims to touch
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> dict[str, Claim]:
        """Return the last attempt at each key that was ever claimed."""
        return {claim.key: claim for claim in self._by_attempt()}

    def take(self, key: str, previous: Claim | None, now: float) -> Claim | None:
        """Claim `key`, if nobody holds it; `previous` is its last attempt as of `now`."""
        if previous is not None and now - previous.touched <= self.heartbeat:
            return None
        attempt = 0 if previous is None else previous.attempt + 1
        path = self.folder / f"{key}.{attempt}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        claim, host = Claim(key, attempt, path), os.uname().nodename
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"worker": self.worker, "host": host, "pid": os.getpid()}, file)
        except OSError:  # a full disk, say: nobody would know whose it is
            self.release(claim)
            raise
        return claim

    def deaths(self, key: str) -> int:
        """Return how many attempts at `key` ended with the death of their worker."""
        attempts = [claim for claim in self._by_attempt() if claim.key == key]
        return sum(claim.touched != RELEASED for claim in attempts[:-1])

    @property
    def alive(self) -> bool:
        """Whether a worker holds a claim and has shown a sign of life."""
        now = self.now()
        return any(now - claim.touched <= self.heartbeat for claim in self.latest().values())

    @property
    def died(self) -> int:
        """The number of all attempts that ended with the death of their worker."""
        latest = self.latest()
        earlier = [claim for claim in self._by_attempt() if claim != latest[claim.key]]
        return sum(claim.touched != RELEASED for claim in earlier)

    def now(self) -> float:
        """Return the time by the clock that also says when claims were touched."""
        clock = self.folder / f".clock_{self.worker}"
        clock.touch()
        return clock.stat().st_mtime

    def free_claims_of(self, worker: str) -> list[str]:
        """Make the claims of a worker that is known to be dead free at once; return their keys."""
        held = [c for c in self.latest().values() if c.touched > DIED and c.worker == worker]
        for claim in held:
            os.utime(claim.path, (DIED, DIED))
        return [claim.key for claim in held]

    def _by_attempt(self) -> list[Claim]:
        """Return all attempts, the first ones first."""
        claims = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                key, _, attempt = entry.name.rpartition(".")
                if key and attempt.isdigit():
                    touched = entry.stat().st_mtime
                    claims.append(Claim(key, int(attempt), Path(entry.path), touched))
        return sorted(claims, key=lambda claim: claim.attempt)

    @contextlib.contextmanager
    def touched(self, on_beat: Callable[[], None]) -> Iterator[None]:
        """Touch the claims that are held from a thread, within the block.

        The thread calls `on_beat` about every second, for what else a worker should notice early.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop, on_beat), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def hold(self, claim: Claim, on_loss: Callable[[], None]) -> None:
        """Touch `claim` from now on; call `on_loss` if another worker takes it over."""
        with self._lock:
            self._on_loss[claim] = on_loss

    def drop(self, claim: Claim) -> None:
        """Touch `claim` no more."""
        with self._lock:
            self._on_loss.pop(claim, None)

    def release(self, claim: Claim) -> None:
        """Give `claim` back for anybody to take at once."""
        self.drop(claim)
        os.utime(claim.path, (RELEASED, RELEASED))

    def _beat(self, stop: threading.Event, on_beat: Callable[[], None]) -> None:
        waited, interval = 0.0, self.heartbeat / 5
        while not stop.wait(min(interval, 1.0)):
            waited += min(interval, 1.0)
            on_beat()
            if waited < interval:
                continue
            waited = 0.0
            with self._lock:
                for claim, on_loss in self._on_loss.items():
                    if claim.next_path.exists():
                        on_loss()
                    else:
                        with contextlib.suppress(OSError):  # a file system that is away returns
                            os.utime(claim.path)
