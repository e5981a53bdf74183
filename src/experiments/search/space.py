"""The search space: parameters by dotted path, and what of them a trial has.

A parameter whose path does not exist in the config of a trial's group choices is no part of that
trial: `optim.momentum` beside `optim` in {adam, momentum} is drawn for `momentum` alone.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from experiments.errors import UserError, suggest
from experiments.search.configs import Configs
from experiments.search.distributions import Choice, Distribution, Numbers
from experiments.search.schema import distribution


class Suggests(Protocol):
    """Something that decides on values, such as a method's view of a trial."""

    def __call__(self, name: str, distribution: Distribution) -> Any: ...


@dataclass(frozen=True)
class Space:
    """The parameters of a search and the configs that they are part of."""

    parameters: Mapping[str, Distribution]
    configs: Configs

    @property
    def groups(self) -> dict[str, Choice]:
        """The parameters that choose a config of a group."""
        known = self.configs.groups
        chosen = {name: d for name, d in self.parameters.items() if name in known}
        return {name: d for name, d in chosen.items() if isinstance(d, Choice)}

    @property
    def contexts(self) -> list[dict[str, Any]]:
        """Group choices of which the first of each group come first, and each occurs once."""
        first = {name: choice.values[0] for name, choice in self.groups.items()}
        others = [
            first | {name: value}
            for name, choice in self.groups.items()
            for value in choice.values[1:]
        ]
        return [first, *others]

    def draw(self, suggest: Suggests) -> dict[str, Any]:
        """The values of one trial: first the choices, then what exists with them."""
        values = {name: suggest(name, choice) for name, choice in self.groups.items()}
        for name in self.existing(values):
            values[name] = suggest(name, self.parameters[name])
        return values

    def existing(self, choices: Mapping[str, Any]) -> list[str]:
        """The parameters, other than choices, that a trial with these choices has."""
        there = self.configs.paths(choices)
        return [name for name in self.parameters if name not in choices and name in there]

    def grid(self, most: int | None) -> list[dict[str, Any]]:
        """Every combination of values; the last parameter changes fastest.

        Ranges are cut into as many evenly spaced values as `most` combinations allow, the same
        number for each range; on a logarithmic scale where the range has one.

        Raises:
            UserError: there are ranges, and no `most` that allows two values of each.
        """
        axes = {name: d.points for name, d in self.parameters.items() if d.points is not None}
        ranges = [name for name in self.parameters if name not in axes]
        if ranges:
            levels = _levels(math.prod(map(len, axes.values())), len(ranges), most or 0)
            if levels < 2:
                raise UserError(
                    f"{ranges[0]}: a grid over a range needs a budget of at least two values a "
                    f"range; say n_trials=..."
                )
            spaced = [i / (levels - 1) for i in range(levels)]
            for name in ranges:
                parameter = self.parameters[name]
                assert isinstance(parameter, Numbers)  # the others have points of their own
                axes[name] = [parameter.finish(parameter.at(u)) for u in spaced]
        axes = {name: axes[name] for name in self.parameters}
        found = []
        for choices in _product({name: axes[name] for name in self.groups}):
            there = self.existing(choices)
            for values in _product({name: axes[name] for name in there}):
                point = choices | values
                found.append({name: point[name] for name in axes if name in point})
        return found

    def check_paths(self) -> Iterator[tuple[str, str]]:
        """(parameter, what is wrong with it) for paths that no trial's config has."""
        known = self.configs.groups
        for name, choice in self.groups.items():
            for value in choice.values:
                if value not in known[name]:
                    hint = suggest(str(value), known[name])
                    yield name, f"{name}={value}: there is no such choice{hint}"
        possible = [c for c in self.contexts if all(c[name] in known[name] for name in c)]
        there: set[str] = set().union(*map(self.configs.paths, possible or [{}]))
        for name in self.parameters:
            if name in known:
                if name not in self.groups:
                    yield name, f"{name} is chosen by name; give values"
            elif name not in there:
                keys = [path for path in there if not path.endswith("._target_")]
                yield name, f"{name}: there is no such key{suggest(name, keys)}"


def _levels(combinations: int, ranges: int, most: int) -> int:
    """The most values a range with which the whole grid stays within `most` points."""
    levels = 1
    while combinations * (levels + 1) ** ranges <= most:
        levels += 1
    return levels


def _product(axes: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def read_space(parameters: Mapping[str, Any], configs: Configs) -> Space:
    """The space of W&B's `parameters`; raises `UserError` with the parameter's name."""
    found = {}
    for name, node in parameters.items():
        try:
            found[name] = distribution(node)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return Space(found, configs)
