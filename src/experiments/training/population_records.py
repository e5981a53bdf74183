"""From arrays of per-step metrics [lanes, steps] to lines of the lanes' logs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.training.recorder import LAST, MEASURED, Line, ends_line


class Records:
    """Collects the steps of all lanes into lines, at the same steps as a solo run's `Recorder`."""

    def __init__(self, log_every: int, steps_per_epoch: int):
        self.log_every, self.steps_per_epoch = log_every, steps_per_epoch
        self.step = 0
        self._line: dict[str, list[np.ndarray]] = {}  # of each step of the line: [lanes]
        self._totals: dict[str, np.ndarray] = {}  # of the epoch: [lanes]

    def add(
        self, log: Mapping[str, np.ndarray], count: int, ends: np.ndarray
    ) -> Iterator[tuple[int, int | None]]:
        """Takes `count` steps; yields (step, lane) where a line is complete, lane None for all.

        `ends` [lanes] is the step after which a lane has diverged, or a large number: its line
        is complete there.
        """
        wide = {name: np.asarray(values[:, :count], np.float64) for name, values in log.items()}
        for i in range(count):
            self.step += 1
            for name, values in wide.items():
                if name in LAST:
                    if not (name in MEASURED and np.isnan(values[:, i]).all()):
                        self._line[name] = [values[:, i]]
                    continue
                self._line.setdefault(name, []).append(values[:, i])
                self._totals[name] = self._totals.get(name, 0.0) + values[:, i]
            yield from ((self.step, int(lane)) for lane in np.flatnonzero(ends == self.step))
            if ends_line(self.step, self.log_every, self.steps_per_epoch):
                yield self.step, None
                self._line = {}

    def lines(self) -> list[Line]:
        """The line so far of every lane."""
        columns: dict[str, list[float]] = {}
        for name, steps in self._line.items():
            if name in LAST:
                last = steps[-1].astype(np.float32)
                columns[name] = [
                    float(text) for text in last.astype(str)
                ]  # 0.001, not 0.00100000005
            else:
                columns[f"train/{name}"] = np.mean(steps, axis=0).tolist()
        epoch = self.step / self.steps_per_epoch
        rows = zip(*columns.values(), strict=True)
        return [{"epoch": epoch, **dict(zip(columns, row, strict=True))} for row in rows]

    def end_epoch(self) -> list[Line]:
        """The means over the epoch of every lane, as `train/epoch_*`; starts the next one."""
        steps = (self.step - 1) % self.steps_per_epoch + 1
        columns = {f"train/epoch_{n}": (t / steps).tolist() for n, t in self._totals.items()}
        self._totals = {}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def keep(self, rows: np.ndarray) -> None:
        """Goes on with these lanes only."""
        self._line = {name: [s[rows] for s in steps] for name, steps in self._line.items()}
        self._totals = {name: total[rows] for name, total in self._totals.items()}

    def progress(self, row: int) -> dict[str, Any]:
        """What a lane's own `Recorder` would have to remember; JSON."""
        return {
            "step": self.step,
            "line": {name: [float(s[row]) for s in steps] for name, steps in self._line.items()},
            "totals": {name: float(total[row]) for name, total in self._totals.items()},
        }

    def restore(self, progress: list[dict[str, Any]]) -> None:
        """Takes up what `progress` said of each lane; all are at the same step."""
        self.step = progress[0]["step"]
        self._line = {
            name: list(np.array([p["line"][name] for p in progress]).T)
            for name in progress[0]["line"]
        }
        self._totals = {
            name: np.array([p["totals"][name] for p in progress]) for name in progress[0]["totals"]
        }
