"""Why and when a training stops, saves, and goes back to the host: signals and the clock."""

import signal
import time
from collections.abc import Sequence
from types import FrameType

import numpy as np

from experiments.training.distributed import agree

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
# How long a dispatch should keep the device busy: each gets its working memory anew, which costs a
# large network on a CPU a fifth of a step.
DISPATCH_SECONDS = 1.0


class StopRequest:
    """While entered, a signal sets `name` and the training stops at the next step.

    A second Ctrl-C raises `KeyboardInterrupt` at once. `status` is what a trial then ends with.
    """

    status = "interrupted"

    def __init__(self) -> None:
        self.name: str | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


class Decisions:
    """The state of the clock and the signals at the last `look`.

    Several processes look together and see the same: a signal to any of them, and the clock of the
    first.

    Args:
      max_time: seconds from `start` after which it is `late` (None: never).
      save_every: seconds between checkpoints (None: `save_due` is never true).
      most_steps: most steps per dispatch.
    """

    def __init__(self, max_time: float | None, save_every: float | None, most_steps: int):
        self._max_time, self._save_every = max_time, save_every
        self.pace = Pace(most_steps)
        self.signal: str | None = None
        self.late = self.save_due = False
        self.steps = 1

    def start(self) -> None:
        """Start the clock."""
        self._started = self._saved = time.perf_counter()

    def look(self, stops: Sequence[StopRequest]) -> None:
        """Look at the clock, and whether all trials were asked to stop.

        All processes call it at the same point of a training.
        """
        now = time.perf_counter()
        names = [stop.name for stop in stops]
        asked = [signal.Signals[name].value for name in names if name is not None]
        number = max(asked) if len(asked) == len(names) else 0
        late = self._max_time is not None and now - self._started > self._max_time
        due = self._save_every is not None and now - self._saved > self._save_every
        seen = agree([number, late, due, self.pace.steps])
        number = int(seen[:, 0].max())
        self.signal = signal.Signals(number).name if number else None
        self.late, self.save_due = bool(seen[0, 1]), bool(seen[0, 2])
        self.steps = int(seen[0, 3])

    def saved(self) -> None:
        """Note that a checkpoint was saved."""
        self._saved, self.save_due = time.perf_counter(), False


class Pace:
    """The number of steps to hand to the device at once, by how long steps take."""

    def __init__(self, most: int):
        self.most, self.steps = most, 1

    def took(self, seconds: float, count: int) -> None:
        """Learn from a finished dispatch."""
        self.steps = int(np.clip(DISPATCH_SECONDS * count / max(seconds, 1e-9), 1, self.most))
