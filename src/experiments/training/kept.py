"""What a process keeps from one run to the next: data that were read, programs that were compiled.

Runs that differ only in traced numbers, seeds and names are of one *static configuration* and share
everything here, so that it is compiled once.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from experiments.core.config import place

T = TypeVar("T")

# what tells runs apart without a difference to the program
OWN = (
    *("seed", "name", "mode", "resume", "checkpoint", "logger", "cluster", "nodes"),
    *("predict", "population", "lr_range"),
)


class Kept:
    """Whatever was made once, by what it was made from."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a value."""
        self._made[key] = value

    def get(self, key: Hashable) -> Any:
        """A kept value, or None."""
        return self._made.get(key)


def static_key(config: Mapping[str, Any], traced: Iterable[str]) -> str:
    """A text that is equal for configs of one static configuration; `traced` are dotted paths."""
    blank = dict.fromkeys(traced)
    rest = {group: value for group, value in config.items() if group not in OWN}
    return json.dumps(place(rest, blank), sort_keys=True)
