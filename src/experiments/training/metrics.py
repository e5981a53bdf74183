"""From arrays of per-step metrics [trials, steps] to lines of a log, and to the best of these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Line = dict[str, float]

LAST = ("learning_rate", "grad_norm", "param_norm", "update_norm")
"""Metrics of which a line has the last step's value; the others are averaged over its steps."""

MEASURED = ("param_norm", "update_norm")
"""Metrics that are known for the steps that end a line, and NaN for all others."""


@dataclass(frozen=True)
class Periods:
    """The periods of a run, each of which ends with an evaluation, and the lines of its metrics.

    Args:
      length: steps of a period, such as an epoch; the last one may be shorter.
      total: steps of the run.
      log_every: steps of a line; another one ends with each period.
    """

    length: int
    total: int
    log_every: int

    def ends_line(self, step: Any) -> Any:
        """Return whether a line ends with the step of this number, from 1; it may be traced."""
        regular = (step == 1) | (step % self.log_every == 0)
        last = min(self.total, 2**31 - 1)  # the largest number of a step on a device
        return regular | (step % self.length == 0) | (step == last)

    def end(self, step: int) -> int:
        """Return the steps done when the period ends that goes on after so many."""
        return min((step // self.length + 1) * self.length, self.total)

    def begin(self, step: int) -> int:
        """Return the steps done before the period that a step is in."""
        return (step - 1) // self.length * self.length

    def number(self, step: int) -> int:
        """Return the number, from 1, of the period that a step is in, and of its evaluation."""
        return -(-step // self.length)

    @property
    def evaluations(self) -> int:
        """The evaluations of the run."""
        return self.number(self.total)


def prefixed(split: str, values: Line) -> Line:
    """Return metrics under `<split>/`."""
    return {f"{split}/{name}": value for name, value in values.items()}


def result(summary: Mapping[str, Any], metric: str) -> float | None:
    """Return what a run has come to: `val/*` of its best epoch, or another value of its summary."""
    return (summary["best"] if metric.startswith("val/") else summary).get(metric)


class Metrics:
    """Collects steps into lines: step 1, every `log_every`-th step and the end of each period.

    Which steps a line covers depends on their numbers alone, never on how they were dispatched.
    """

    def __init__(self, periods: Periods, steps_per_epoch: int):
        self.periods, self.steps_per_epoch = periods, steps_per_epoch
        self.step = 0
        self._line: dict[str, list[np.ndarray]] = {}  # of each step of the line: [trials]
        self._totals: dict[str, np.ndarray] = {}  # since the last evaluation: [trials]
        self._evaluated = 0  # the step of the last evaluation

    @property
    def epoch(self) -> float:
        """Epochs trained, in fractions."""
        return self.step / self.steps_per_epoch

    def add(
        self, log: Mapping[str, np.ndarray], count: int, ends: Sequence[int | None]
    ) -> Iterator[tuple[int, int | None]]:
        """Take `count` finished steps; yield (step, trial) where a line is complete.

        The trial is None where the lines of all are. `ends` has for each trial the step after
        which it has diverged, where its line is complete, or None.
        """
        wide = {name: np.asarray(values[:, :count], np.float64) for name, values in log.items()}
        for i in range(count):
            self.step += 1
            for name, values in wide.items():
                column = values[:, i]
                if name not in LAST:
                    self._line.setdefault(name, []).append(column)
                    self._totals[name] = self._totals.get(name, 0.0) + column
                elif not (name in MEASURED and np.isnan(column).all()):
                    self._line[name] = [column]
            yield from ((self.step, trial) for trial, end in enumerate(ends) if end == self.step)
            if self.periods.ends_line(self.step):
                yield self.step, None
                self._line = {}

    def lines(self) -> list[Line]:
        """Return each trial's line up to the last step."""
        columns: dict[str, list[float]] = {}
        for name, steps in self._line.items():
            if name in LAST:
                last = steps[-1].astype(np.float32).astype(str)
                columns[name] = [float(text) for text in last]  # 0.001, not 0.0010000000475
            else:
                columns[f"train/{name}"] = (sum(steps) / len(steps)).tolist()  # type: ignore[union-attr]
        rows = zip(*columns.values(), strict=True)
        return [{"epoch": self.epoch, **dict(zip(columns, row, strict=True))} for row in rows]

    def end_period(self) -> list[Line]:
        """Return each trial's means since the last evaluation, as `train/epoch_*`; begin anew."""
        steps = self.step - self._evaluated
        columns = {f"train/epoch_{n}": (t / steps).tolist() for n, t in self._totals.items()}
        self._totals, self._evaluated = {}, self.step
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def keep(self, trials: Sequence[int]) -> None:
        """Go on with these trials alone."""
        rows = np.array(trials)
        self._line = {name: [s[rows] for s in steps] for name, steps in self._line.items()}
        self._totals = {name: total[rows] for name, total in self._totals.items()}

    def progress(self, trial: int) -> dict[str, Any]:
        """Return what an interrupted trial has to remember; JSON."""
        return {
            "step": self.step,
            "line": {name: [float(s[trial]) for s in steps] for name, steps in self._line.items()},
            "totals": {name: float(total[trial]) for name, total in self._totals.items()},
            "evaluated": self._evaluated,
        }

    def restore(self, progress: Sequence[dict[str, Any]]) -> None:
        """Take up what `progress` returned for each trial; all are at the same step."""
        first = progress[0]
        self.step = first["step"]
        self._line = {n: list(np.array([p["line"][n] for p in progress]).T) for n in first["line"]}
        self._totals = {n: np.array([p["totals"][n] for p in progress]) for n in first["totals"]}
        before = (self.step - 1) // self.steps_per_epoch * self.steps_per_epoch  # of version 0.1
        self._evaluated = first.get("evaluated", before if self._totals else self.step)


@dataclass
class Best:
    """Follows the monitored validation metric from evaluation to evaluation.

    Args:
      metric: such as "accuracy".
      mode: "min", "max" or, where no metric tells, "last".
      min_delta: what a value has to be better by to count as an improvement.
      keep: how many of the best evaluations are in `best_k`.
      line: that of the best evaluation.
      stale: evaluations since the last improvement.
      mark: the value that the next improvement is better than.
      best_k: step, epoch and value of the best evaluations, the best first.
    """

    metric: str
    mode: str
    min_delta: float
    keep: int
    line: Line = field(default_factory=dict)
    stale: int = 0
    mark: float | None = None
    best_k: list[Line] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        """The best value so far."""
        return self.line.get(f"val/{self.metric}")

    def progress(self) -> dict[str, Any]:
        """Return what an interrupted trial has to remember; JSON."""
        return {"best": self.line, "stale": self.stale, "mark": self.mark, "kept": self.best_k}

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Take up what `progress` returned; version 0.1 knew of the best evaluation alone."""
        self.line, self.stale = progress["best"], progress["stale"]
        self.mark = progress.get("mark", self.value)
        self.best_k = progress.get("kept", [])[: self.keep]

    def take(self, step: int, line: Line) -> bool:
        """Take the line of an evaluation; return whether no earlier one was as good."""
        name = f"val/{self.metric}"
        value = line[name]
        if value == value:  # not NaN
            self.best_k.append({"step": step, "epoch": line["epoch"], name: value})
            rank = {"min": lambda one: one[name], "max": lambda one: -one[name]}
            self.best_k.sort(
                key=rank.get(self.mode, lambda one: -one["step"])
            )  # earlier ones first
            del self.best_k[self.keep :]
        improved = self._better(value, self.mark, self.min_delta)
        self.stale = 0 if improved else self.stale + 1
        self.mark = value if improved else self.mark
        if better := self._better(value, self.value):
            self.line = dict(line)
        return better

    def _better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        if value != value:  # NaN is never better
            return False
        if than is None or self.mode == "last":
            return True
        return value < than - by if self.mode == "min" else value > than + by
