"""What a report says of a study, as plain values: what figures and pages are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Axis:
    """A searched parameter."""

    name: str
    log: bool
    choices: tuple | None
    """The values of a list; None for a range of numbers."""

    def position(self, value: Any) -> float:
        """Where a value stands: a number is itself, a choice its index."""
        return float(value) if self.choices is None else float(self.choices.index(value))


@dataclass(frozen=True)
class Row:
    """A trial."""

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    seconds: float | None
    reason: str | None
    curve: tuple[tuple[float, ...], tuple[float, ...]]
    """Epochs, and the metric after each."""


@dataclass(frozen=True)
class StudyData:
    """A study as its report shows it."""

    name: str
    method: str
    metric: str
    goal: str
    budget: int
    axes: Sequence[Axis]
    rows: Sequence[Row]
    importance: dict[str, float]
    """Of each parameter that every finished trial has, its share, largest first; may be empty."""
    command: str | None
    """What runs the best trial again."""
    tested: dict[str, float] = field(default_factory=dict)
    """`test/*` of the winner."""

    @property
    def ranked(self) -> list[Row]:
        """The trials that have a value, best first."""
        sign = 1 if self.goal == "minimize" else -1
        valued = [row for row in self.rows if row.value is not None]
        return sorted(valued, key=lambda row: sign * row.value)  # type: ignore[operator]

    @property
    def varied(self) -> list[Axis]:
        """The parameters of which there is more than one value."""
        return [axis for axis in self.axes if axis.choices is None or len(axis.choices) > 1]

    def best_so_far(self) -> tuple[list[int], list[float]]:
        """(number of trials, best value among so many), in the order of the trials."""
        pick = min if self.goal == "minimize" else max
        best: list[float] = []
        for row in self.rows:
            if row.value is not None:
                best.append(row.value if not best else pick(best[-1], row.value))
        return list(range(1, len(best) + 1)), best
