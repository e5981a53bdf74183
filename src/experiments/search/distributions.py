"""What a hyperparameter may be: the distributions of W&B's sweep schema.

Each is given by its quantile function `at`, so that one uniform number decides one draw whatever
the method that drew it, and by the distribution that stands for it in an Optuna study.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

DIGITS = 6  # significant digits of a drawn number: short to read and write, finer than fp32 noise
NORMAL = NormalDist()
TAIL = 1e-6  # probability beyond each end of a normal distribution that is cut off


@dataclass(frozen=True)
class Choice:
    """One of a list of values; `probabilities` are equal unless given."""

    values: tuple
    probabilities: tuple[float, ...] | None = None

    def at(self, u: float) -> Any:
        """The value at the quantile `u` in [0, 1)."""
        if self.probabilities is None:
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        total = 0.0
        for value, probability in zip(self.values, self.probabilities, strict=True):
            total += probability
            if u < total:
                return value
        return self.values[-1]

    def finish(self, value: Any) -> Any:
        """The config value that a value of the Optuna distribution stands for."""
        return next(v for v in self.values if in_optuna(v) == value)

    @property
    def optuna(self) -> BaseDistribution:
        """Its counterpart in Optuna, which knows no probabilities and no lists."""
        return CategoricalDistribution([in_optuna(value) for value in self.values])

    @property
    def points(self) -> list:
        """Every value, for a grid."""
        return list(self.values)


@dataclass(frozen=True)
class Integers:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def at(self, u: float) -> int:
        """The value at the quantile `u` in [0, 1)."""
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)

    def position(self, value: float) -> float:
        """The middle of the quantiles at which `value` is drawn."""
        return (value - self.low + 0.5) / (self.high - self.low + 1)

    def finish(self, value: int) -> int:
        """The config value that a value of the Optuna distribution stands for."""
        return int(value)

    @property
    def optuna(self) -> BaseDistribution:
        """Its counterpart in Optuna."""
        return IntDistribution(self.low, self.high)

    @property
    def points(self) -> list:
        """Every value, for a grid."""
        return list(range(self.low, self.high + 1))


@dataclass(frozen=True)
class Numbers:
    """A number x for which x, or with `log` its natural logarithm, is uniform or normal.

    `a` and `b` are the ends of a uniform distribution (with `log`: of x itself) or the mean and
    the standard deviation of a normal one (with `log`: of log x). With `q` the value is
    round(x / q) * q, a whole number where q is one.
    """

    shape: Literal["uniform", "normal"]
    a: float
    b: float
    log: bool = False
    q: float | None = None

    def at(self, u: float) -> float:
        """The x at the quantile `u` in [0, 1), not quantised."""
        if self.shape == "normal":
            x = self.a + self.b * NORMAL.inv_cdf(min(max(u, TAIL), 1 - TAIL))
            return math.exp(x) if self.log else x
        if self.log:
            low, high = math.log(self.a), math.log(self.b)
            return min(max(math.exp(low + u * (high - low)), self.a), self.b)
        return self.a + u * (self.b - self.a)

    def position(self, x: float) -> float:
        """The quantile of x: the inverse of `at`."""
        y = math.log(x) if self.log else x
        if self.shape == "normal":
            return NORMAL.cdf((y - self.a) / self.b)
        low, high = (math.log(self.a), math.log(self.b)) if self.log else (self.a, self.b)
        return (y - low) / (high - low)

    def finish(self, x: float) -> float:
        """The config value that x stands for: quantised, or of a few significant digits."""
        if self.q is None:
            short = float(f"{x:.{DIGITS}g}")
            low, high = self.ends
            return min(max(short, low), high)
        value = float(f"{round(x / self.q) * self.q:.12g}")  # 0.3, not 0.30000000000000004
        return int(value) if float(self.q).is_integer() else value

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest x."""
        return (self.a, self.b) if self.shape == "uniform" else (self.at(TAIL), self.at(1 - TAIL))

    @property
    def optuna(self) -> BaseDistribution:
        """Its counterpart in Optuna: the range of x."""
        return FloatDistribution(*self.ends, log=self.log)

    @property
    def points(self) -> list | None:
        """Every value, for a grid; None where there are infinitely many."""
        if self.shape == "normal" or self.log or self.q is None:
            return None
        first, last = round(self.a / self.q), round(self.b / self.q)
        return [self.finish(i * self.q) for i in range(first, last + 1)]


Distribution = Choice | Integers | Numbers


def in_optuna(value: Any) -> Any:
    """A value as Optuna stores it; what is no scalar goes as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
