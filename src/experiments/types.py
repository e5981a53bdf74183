"""Annotations that say which values an argument may take; `config.check` reads them.

`Annotated[float, Range(minimum=0)]` is documentation, a static type and a run-time check in one.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """An interval of numbers, closed unless `open_minimum` or `open_maximum` says otherwise."""

    minimum: float = float("-inf")
    maximum: float = float("inf")
    open_minimum: bool = False
    open_maximum: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.minimum if self.open_minimum else value >= self.minimum
        below = value < self.maximum if self.open_maximum else value <= self.maximum
        return above and below  # NaN is in no range

    def __str__(self) -> str:
        parts = []
        if self.minimum != float("-inf"):
            parts.append(f"{'greater than' if self.open_minimum else 'at least'} {self.minimum:g}")
        if self.maximum != float("inf"):
            parts.append(f"{'less than' if self.open_maximum else 'at most'} {self.maximum:g}")
        return " and ".join(parts) or "a number"


@dataclass(frozen=True)
class Static:
    """Marks a number that decides shapes, so that it can be no input of a compiled program."""


Positive = Annotated[float, Range(minimum=0, open_minimum=True, maximum=1e30)]
NonNegative = Annotated[float, Range(minimum=0, maximum=1e30)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
Decay = Annotated[float, Range(minimum=0, maximum=1, open_maximum=True)]  # [0, 1)
Compression = Annotated[float, Range(minimum=0, maximum=1, open_minimum=True), Static()]  # (0, 1]
PositiveInt = Annotated[int, Range(minimum=1, maximum=2**31 - 1)]
NonNegativeInt = Annotated[int, Range(minimum=0, maximum=2**31 - 1)]

Activation = Literal[
    "identity", "step", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "swish"
]
Head = Literal["identity", "sigmoid", "softmax"]
Mode = Literal[
    "train", "evaluate", "predict", "export", "summary", "figures", "sample", "lr_range", "pretrain"
]
Seed = Annotated[int, Range(minimum=0, maximum=2**31 - 1)]


def is_off(value: Any) -> bool:
    """Return True for a number that is exactly 0 in the config; a traced number is on."""
    return isinstance(value, int | float) and value == 0
