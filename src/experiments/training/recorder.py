"""From arrays of per-step metrics to the lines of a log."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Line = dict[str, float]

LAST = ("learning_rate", "grad_norm", "param_norm", "update_norm")
"""Of these a line says the last step's; everything else is averaged over the line's steps."""


MEASURED = ("param_norm", "update_norm")
"""Known of the steps that end a line, NaN for all others."""


def ends_line(step: Any, log_every: int, steps_per_epoch: int) -> Any:
    """Whether a line ends with the step of this number, from 1; also for a traced number."""
    return (step == 1) | (step % log_every == 0) | (step % steps_per_epoch == 0)


class Recorder:
    """Collects steps into lines: step 1, every `log_every`-th step and the end of each epoch.

    Which steps a line covers depends on their numbers alone, never on how they were dispatched.
    """

    def __init__(self, log_every: int, steps_per_epoch: int, batch_size: int):
        self.log_every, self.steps_per_epoch = log_every, steps_per_epoch
        self.batch_size = batch_size
        self.step = 0
        self.rate = 0.0  # examples per second of the last dispatch
        self.line: dict[str, list[float]] = {}
        self.totals: dict[str, float] = {}
        self.start_clock()

    @property
    def progress(self) -> dict[str, Any]:
        """What an interrupted run has to remember; JSON."""
        return {"step": self.step, "line": self.line, "totals": self.totals}

    @progress.setter
    def progress(self, saved: dict[str, Any]) -> None:
        self.step, self.line, self.totals = saved["step"], saved["line"], saved["totals"]

    def start_clock(self) -> None:
        """Starts timing anew, after work that was not training."""
        self._clock = time.perf_counter()

    def lap(self, count: int) -> float:
        """The seconds that the last `count` steps took."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self.rate = count * self.batch_size / max(seconds, 1e-9)
        return seconds

    def add(
        self, log: Mapping[str, np.ndarray], count: int, flush: bool = False
    ) -> Iterator[tuple[int, Line]]:
        """Takes the metrics of `count` finished steps; yields (step, line) of complete lines.

        `flush` completes the last line wherever it stands.
        """
        for i in range(count):
            self.step += 1
            for name, values in log.items():
                value = float(values[i])
                if name in LAST:
                    if not (name in MEASURED and np.isnan(value)):
                        self.line[name] = [value]
                    continue
                self.line.setdefault(name, []).append(value)
                self.totals[name] = self.totals.get(name, 0.0) + value
            ends = ends_line(self.step, self.log_every, self.steps_per_epoch)
            if ends or (flush and i == count - 1):
                line, self.line = self.line_so_far(), {}
                yield self.step, line

    def end_epoch(self) -> Line:
        """The means over the epoch so far, as `train/epoch_*`; starts the next one."""
        steps = (self.step - 1) % self.steps_per_epoch + 1
        means = {f"train/epoch_{name}": total / steps for name, total in self.totals.items()}
        self.totals = {}
        return means

    def line_so_far(self) -> Line:
        """The line that the last step belongs to, up to that step."""
        line = {"epoch": self.step / self.steps_per_epoch}
        for name, values in self.line.items():
            if name not in LAST:
                line[f"train/{name}"] = sum(values) / len(values)
            else:
                line[name] = float(str(np.float32(values[-1])))  # 0.001, not 0.0010000000475
        line["examples_per_second"] = self.rate
        return line
