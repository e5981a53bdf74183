"""Every value that a search may draw, held against the config before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.core.config import build, check_config
from experiments.errors import UserError
from experiments.search.distributions import Choice, Distribution, Integers
from experiments.search.space import Space


@dataclass(frozen=True)
class Case:
    """A config, and the values that a search may draw for parameters of it."""

    config: dict[str, Any]
    values: dict[str, list]


@dataclass(frozen=True)
class Findings:
    """What `examine` found.

    Args:
      wrong: (parameter, what is wrong with it).
      monitor: (the metric that the objective goes by, "min" or "max"), if nothing is wrong.
    """

    wrong: list[tuple[str, str]]
    monitor: tuple[str, str] | None = None


def cases(space: Space) -> list[Case]:
    """What `examine` is to look at: every choice of every group, the ends of every range."""
    return [
        Case(
            space.configs.plain(choices),
            {name: representatives(space.parameters[name]) for name in space.existing(choices)},
        )
        for choices in space.contexts
    ]


def examine(cases: Sequence[Case]) -> Findings:
    """Holds all values against their configs. Imports what they name, and with that JAX.

    Raises:
        UserError: something is wrong with the first config as it is.
    """
    wrong: dict[str, str] = {}
    for case in cases:
        for name, values in case.values.items():
            complaints = (complaint_about(case.config, name, value) for value in values)
            if name not in wrong and (complaint := next(filter(None, complaints), None)):
                wrong[name] = complaint
    if wrong:
        return Findings(list(wrong.items()))
    config = cases[0].config
    check_config(config)
    objective = build(config["objective"], loss=build(config.get("loss")), num_classes=2)
    return Findings([], objective.monitor)


def representatives(parameter: Distribution) -> list:
    """All values of a list, the ends of a range."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    if isinstance(parameter, Integers):
        return [parameter.low, parameter.high]
    return [parameter.finish(end) for end in parameter.ends]


def complaint_about(config: Mapping[str, Any], name: str, value: Any) -> str | None:
    """What a run would say to this value."""
    changed = _with(config, name.split("."), value)
    try:
        check_config(changed)
    except UserError as error:
        text = str(error)
        return text if name in text else f"{name}={value}: {text}"
    return None


def _with(node: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**node, first: _with(node[first], rest, value) if rest else value}
