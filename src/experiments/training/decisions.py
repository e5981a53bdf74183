"""When to stop, when to save and how many steps to hand to the device at once."""

import signal
import time

import numpy as np

from experiments.training.distributed import agree
from experiments.training.signals import StopRequest

# How long one dispatch should keep the device busy. Each gets its working memory anew: a fifth of
# a step of VGG-16 on a CPU.
DISPATCH_SECONDS = 1.0


class Decisions:
    """What the clock and the signals say, as seen at the last `look`.

    Several processes look together and see the same: a signal to any of them, and the clock of the
    first.

    Args:
      stop: the signals.
      max_time: seconds from `start` after which it is `late` (None: never).
      save_every: seconds between checkpoints (None: `save_due` is never true).
      most_steps: most steps a dispatch.
    """

    def __init__(
        self,
        stop: StopRequest,
        max_time: float | None,
        save_every: float | None,
        most_steps: int,
    ):
        self._stop, self._max_time, self._save_every = stop, max_time, save_every
        self.pace = Pace(most_steps)
        self.signal: str | None = None
        self.late = self.save_due = False
        self.steps = 1

    def start(self) -> None:
        """Starts the clock."""
        self._started = self._saved = time.perf_counter()

    def look(self) -> None:
        """Looks at the clock and the signals; all processes call it at the same point of a run."""
        now = time.perf_counter()
        name = self._stop.name
        number = 0 if name is None else signal.Signals[name].value
        late = self._max_time is not None and now - self._started > self._max_time
        due = self._save_every is not None and now - self._saved > self._save_every
        seen = agree([number, late, due, self.pace.steps])
        number = int(seen[:, 0].max())
        self.signal = signal.Signals(number).name if number else None
        self.late, self.save_due = bool(seen[0, 1]), bool(seen[0, 2])
        self.steps = int(seen[0, 3])

    def saved(self) -> None:
        """A checkpoint was saved."""
        self._saved, self.save_due = time.perf_counter(), False


class Pace:
    """How many steps to hand to the device at once, from how long steps take."""

    def __init__(self, most: int):
        self.most, self.steps = most, 1

    def took(self, seconds: float, count: int) -> None:
        """Learns from a finished dispatch."""
        self.steps = int(np.clip(DISPATCH_SECONDS * count / max(seconds, 1e-9), 1, self.most))
