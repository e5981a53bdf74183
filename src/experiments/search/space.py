"""The search space: the values of each parameter, and the parameters of a trial.

A trial has the parameters that its config has: beside `optim` in {adam, momentum} a value of
`optim.momentum` is drawn for `momentum` alone. A parameter called `optim.learning_rate@momentum` is
drawn beside that choice, in the place of `optim.learning_rate`.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.core import trust
from experiments.core.trust import vet, vet_objects
from experiments.errors import UserError, suggest
from experiments.search.configs import Configs

DIGITS = 6  # significant digits of a drawn number: short to read and write, finer than fp32 noise
NORMAL = NormalDist()
TAIL = 1e-6  # probability beyond each end of a normal distribution that is cut off


@dataclass(frozen=True)
class Parameter:
    """A parameter: an Optuna distribution, and what such a distribution cannot express.

    Args:
      optuna: the range of a number with its scale, or a list of values as Optuna stores them.
      values: the values of a list.
      probabilities: of these values; equal unless given.
      normal: mean and standard deviation of the number, or with a logarithmic scale of its
        logarithm; uniform between the ends of the range unless given.
      q: the step: the number x becomes round(x / q) * q, a whole number if q is whole.
    """

    optuna: CategoricalDistribution | IntDistribution | FloatDistribution
    values: tuple = ()
    probabilities: tuple[float, ...] | None = None
    normal: tuple[float, float] | None = None
    q: float | None = None

    def at(self, u: float) -> Any:
        """Return the value at the quantile `u` in [0, 1); a number is not rounded yet."""
        known = self.optuna
        if isinstance(known, CategoricalDistribution):
            index = int(u * len(self.values))
            if self.probabilities is not None:
                index = bisect.bisect(list(itertools.accumulate(self.probabilities)), u)
            return self.values[min(index, len(self.values) - 1)]
        if isinstance(known, IntDistribution):
            return min(known.low + int(u * (known.high - known.low + 1)), known.high)
        if self.normal is not None:
            return quantile_of_normal(u, *self.normal, log=known.log)
        if not known.log:
            return known.low + u * (known.high - known.low)
        low, high = math.log(known.low), math.log(known.high)
        return min(max(math.exp(low + u * (high - low)), known.low), known.high)

    def position(self, x: float) -> float:
        """Return the quantile of a number: the inverse of `at`, for integers its middle."""
        known = self.optuna
        if isinstance(known, IntDistribution):
            return (x - known.low + 0.5) / (known.high - known.low + 1)
        assert isinstance(known, FloatDistribution)
        x, low, high = map(math.log if known.log else float, (x, known.low, known.high))
        if self.normal is not None:
            mean, deviation = self.normal
            return NORMAL.cdf((x - mean) / deviation)
        return (x - low) / (high - low)

    def finish(self, value: Any) -> Any:
        """Return the config value for a value of the Optuna distribution: rounded, or a list."""
        known = self.optuna
        if isinstance(known, CategoricalDistribution):
            return next(v for v in self.values if in_optuna(v) == value)
        if isinstance(known, IntDistribution):
            return int(value)
        if self.q is None:
            return min(max(float(f"{value:.{DIGITS}g}"), known.low), known.high)
        rounded = float(f"{round(value / self.q) * self.q:.12g}")  # 0.3, not 0.30000000000000004
        return int(rounded) if float(self.q).is_integer() else rounded

    def stored(self, value: Any) -> Any:
        """Return a config value as Optuna stores it; raises `UserError` if it is none of these."""
        known = self.optuna
        if isinstance(known, CategoricalDistribution):
            for one in map(in_optuna, self.values):
                if (one, isinstance(one, bool)) == (in_optuna(value), isinstance(value, bool)):
                    return one
        elif isinstance(value, int | float) and not isinstance(value, bool):
            inside = min(max(value, known.low), known.high)  # rounding may have moved it out
            if math.isclose(self.finish(inside), value, rel_tol=10**-DIGITS):
                return inside
        raise UserError(f"{value} is not among the values that are searched")

    def vet(self, name: str, source: Any) -> None:
        """Check that each value may be named by `source`; raises `UserError`."""
        for value in self.values:
            vet({path_of(name): value}, source)

    @property
    def equally_likely(self) -> bool:
        """True for a list and a range of whole numbers of which random search prefers none."""
        whole = isinstance(self.optuna, IntDistribution)
        return whole or (bool(self.values) and self.probabilities is None)

    @property
    def points(self) -> Sequence | None:
        """Every value, for a grid; None where there are infinitely many."""
        known = self.optuna
        if isinstance(known, CategoricalDistribution):
            return list(self.values)
        if isinstance(known, IntDistribution):
            return range(known.low, known.high + 1)
        if self.normal or known.log or self.q is None:
            return None
        first, last = round(known.low / self.q), round(known.high / self.q)
        return [self.finish(i * self.q) for i in range(first, last + 1)]

    @property
    def extremes(self) -> list:
        """All values of a list, the ends of a range, and 0 between them where that is drawn."""
        if isinstance(self.optuna, CategoricalDistribution):
            return list(self.values)
        low, high = self.optuna.low, self.optuna.high
        steps = self.q is not None or isinstance(self.optuna, IntDistribution)
        return [self.finish(x) for x in (low, high, *([0] if steps and low < 0 < high else []))]


def choice(values: Sequence, probabilities: Sequence[float] | None = None) -> Parameter:
    """Return one of a list of values."""
    stored = CategoricalDistribution([in_optuna(value) for value in values])
    return Parameter(stored, tuple(values), None if probabilities is None else tuple(probabilities))


def normal(mean: float, deviation: float, *, log: bool, q: float | None) -> Parameter:
    """Return a number that is normally distributed, or with `log` its logarithm."""
    low, high = (quantile_of_normal(u, mean, deviation, log=log) for u in (TAIL, 1 - TAIL))
    return Parameter(FloatDistribution(low, high, log=log), normal=(mean, deviation), q=q)


def quantile_of_normal(u: float, mean: float, deviation: float, *, log: bool) -> float:
    """Return the quantile `u` of a normal distribution, or with `log` of a log-normal one."""
    x = mean + deviation * NORMAL.inv_cdf(min(max(u, TAIL), 1 - TAIL))
    return math.exp(x) if log else x


def in_optuna(value: Any) -> Any:
    """Return a value as Optuna stores it: a scalar as it is, anything else as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def path_of(name: str) -> str:
    """Return the key of the config that a parameter of this name is of."""
    return name.partition("@")[0]


class Grid:
    """All combinations of values, by their number; the last parameter changes fastest.

    Args:
      axes: the values of each parameter.
      blocks: combinations of choices, each with the parameters that there are beside it.
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence],
        blocks: Sequence[tuple[dict[str, Any], Sequence[str]]],
    ):
        self.axes, self.blocks = axes, blocks
        self.sizes = [math.prod(len(axes[name]) for name in names) for _, names in blocks]
        self.size = sum(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for (choices, names), size in zip(self.blocks, self.sizes, strict=True):
            if index < size:
                point = dict(choices)
                for name in reversed(names):
                    index, own = divmod(index, len(self.axes[name]))
                    point[name] = self.axes[name][own]
                return {name: point[name] for name in self.axes if name in point}
            index -= size
        raise IndexError


@dataclass(frozen=True)
class Space:
    """The parameters of a search, by dotted path or group, and the configs of its trials."""

    parameters: Mapping[str, Parameter]
    configs: Configs

    @property
    def groups(self) -> dict[str, tuple]:
        """The parameters that choose a config of a group, each with its choices."""
        known = self.configs.groups
        return {name: p.values for name, p in self.parameters.items() if name in known and p.values}

    @property
    def contexts(self) -> list[dict[str, Any]]:
        """Combinations of choices in which every choice occurs; first the first of each group."""
        first = {name: values[0] for name, values in self.groups.items()}
        others = (first | {name: v} for name, values in self.groups.items() for v in values[1:])
        return [first, *others]

    def vet(self, source: Any, *, objects: bool = False) -> None:
        """Check that `source` may name and read what its trials do; raises `UserError`.

        Args:
          objects: import what the choices name too.
        """
        try:
            for name, parameter in self.parameters.items():
                parameter.vet(name, source)
            for choices in self.contexts:
                vet(config := self.configs.compose(choices), source)
                if objects:
                    vet_objects(config, source)
        except UserError as error:
            own = self.configs.config_dir
            if own is None or Path(own) in trust.own_folders():
                raise
            advice = (
                f"it was begun with config files of {own}; if you trust them: --config-dir={own}"
            )
            raise UserError(f"{error}\n{advice}") from error

    def draw(self, suggest: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        """Return the values of one trial: of groups, then of the parameters beside them."""
        values = {name: suggest(name, self.parameters[name]) for name in self.groups}
        for name in self.existing(values):
            values[path_of(name)] = suggest(name, self.parameters[name])
        return values

    def existing(self, choices: Mapping[str, Any]) -> list[str]:
        """Return the parameters, other than choices, that a trial with these choices has."""
        if choices.keys() == self.parameters.keys():
            return []  # without composing
        there = self.configs.paths(choices)
        own = {f"@{choice}" for choice in choices.values()}
        found: dict[str, str] = {}
        for name in self.parameters:
            path, at, choice = name.partition("@")
            if path in there and name not in choices and (not at or at + choice in own):
                found[path] = name if at else found.get(path, name)
        return list(found.values())

    @property
    def paths(self) -> list[str]:
        """The keys of the config that the parameters are of, each once."""
        return list(dict.fromkeys(map(path_of, self.parameters)))

    @property
    def finite(self) -> bool:
        """Whether there are finitely many combinations, and no value is likelier than another."""
        return all(parameter.equally_likely for parameter in self.parameters.values())

    def grid(self, most: int | None) -> Grid:
        """Return every combination of values.

        Ranges are cut into as many evenly spaced values as `most` combinations allow, the same
        number for each range; on a logarithmic scale where the range has one.

        Raises:
            UserError: there are ranges, and no `most` that allows two values of each.
        """
        axes = {name: parameter.points for name, parameter in self.parameters.items()}
        ranges = [name for name, points in axes.items() if points is None]
        finite = math.prod(len(points) for points in axes.values() if points is not None)
        levels = 1
        while ranges and finite * (levels + 1) ** len(ranges) <= (most or 0):
            levels += 1
        for name in ranges:
            if levels < 2:
                raise UserError(
                    f"{name}: a grid over a range needs a budget of at least two values per "
                    f"range; say n_trials=..."
                )
            parameter = self.parameters[name]
            spaced = (i / (levels - 1) for i in range(levels))
            axes[name] = [parameter.finish(parameter.at(u)) for u in spaced]
        values = self.groups.values()
        each = (dict(zip(self.groups, one, strict=True)) for one in itertools.product(*values))
        blocks = [(choices, self.existing(choices)) for choices in each]
        return Grid({name: points or () for name, points in axes.items()}, blocks)

    def check_paths(self) -> Iterator[str]:
        """Yield a complaint, which begins with the parameter, for paths that no config has."""
        known = self.configs.groups
        for name, values in self.groups.items():
            for value in values:
                if value not in known[name]:
                    hint = suggest(str(value), known[name])
                    yield f"{name}={value}: there is no such choice{hint}"
        possible = [c for c in self.contexts if all(c[name] in known[name] for name in c)]
        there: set[str] = set().union(*map(self.configs.paths, possible or [{}]))
        for name in self.parameters:
            if name in known:
                if name not in self.groups:
                    yield f"{name} is chosen by name; give values"
            elif "@" in name and not any(name in self.existing(c) for c in possible):
                yield f"{name}: no trial has this key beside a choice {name.partition('@')[2]}"
            elif path_of(name) not in there:
                keys = [path for path in there if not path.endswith("._target_")]
                there_is_none = f"there is no such key{suggest(name, keys)}"
                yield f"{name}: {self.configs.elsewhere(path_of(name)) or there_is_none}"
