"""Every value that a search may draw, held against the config before anything starts."""

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.checking import check_config
from experiments.errors import UserError
from experiments.search.distributions import Choice, Distribution, Integers
from experiments.search.space import Space


def problems(space: Space) -> Iterator[tuple[str, str]]:
    """(parameter, what is wrong with it) for paths and values that no run would take."""
    wrong = dict(space.check_paths())
    yield from wrong.items()
    if wrong:
        return
    for choices in space.contexts:
        config = space.configs.plain(choices)
        for name in space.existing(choices):
            for value in representatives(space.parameters[name]):
                complaint = complaint_about(config, name, value)
                if complaint and name not in wrong:
                    wrong[name] = complaint
                    yield name, complaint


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
