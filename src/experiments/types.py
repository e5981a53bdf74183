"""Annotations that say which values an argument may take; `core.config.check` reads them.

`Annotated[float, Bound("at least", 0)]` is documentation, static type and run-time check in one.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

COMPARISONS = {
    "at least": operator.ge,
    "greater than": operator.gt,
    "at most": operator.le,
    "less than": operator.lt,
}


@dataclass(frozen=True)
class Bound:
    """One end of an interval of numbers, in the words of its error message; NaN is in none."""

    comparison: Literal["at least", "greater than", "at most", "less than"]
    limit: float

    def admits(self, value: float) -> bool:
        """Return whether a number is on the right side of this end."""
        return COMPARISONS[self.comparison](value, self.limit)

    def __str__(self) -> str:
        return f"{self.comparison} {self.limit:g}"


@dataclass(frozen=True)
class Static:
    """Marks a number that decides shapes, so that it cannot be an input of a compiled program."""


Positive = Annotated[float, Bound("greater than", 0), Bound("at most", 1e30)]
NonNegative = Annotated[float, Bound("at least", 0), Bound("at most", 1e30)]
Fraction = Annotated[float, Bound("at least", 0), Bound("at most", 1)]
Share = Annotated[float, Bound("greater than", 0), Bound("at most", 1)]
Decay = Annotated[float, Bound("at least", 0), Bound("less than", 1)]
Compression = Annotated[float, Bound("greater than", 0), Bound("at most", 1), Static()]
PositiveInt = Annotated[int, Bound("at least", 1), Bound("at most", 2**31 - 1)]
NonNegativeInt = Annotated[int, Bound("at least", 0), Bound("at most", 2**31 - 1)]
Seed = NonNegativeInt

BatchSize = PositiveInt | Literal[-1, "auto"]
"""Examples per step of a training: -1 for all, `auto` for as many as there is memory for."""

Limit = PositiveInt | Share | None
"""A number of training examples, or a share of them as a float; None for all."""

Sampler = Literal["uniform", "balanced"]
Activation = Literal[
    "identity", "step", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "swish"
]
Head = Literal["identity", "sigmoid", "softmax"]
Likelihood = Literal["bernoulli", "gaussian", "logistic"]
Initializer = Callable[..., Any]  # (key, shape, dtype) to an array, as in `jax.nn.initializers`

RunMode = Literal["evaluate", "predict", "export", "figures", "inspect", "reproduce", "sample"]
"""The modes that work on an earlier run, most of them on its weights."""

TrainingMode = Literal["train", "lr_range", "pretrain", "lesson"]
"""The modes that train, in a folder of their own."""

Mode = Literal[TrainingMode, RunMode, "summary", "gradcheck"]
"""Every mode; `mode=<name>` calls `main` of `experiments.commands.<name>`."""


def is_off(value: Any) -> bool:
    """Return True for null and for a number that is exactly 0 in the config; a traced one is on."""
    return value is None or (isinstance(value, int | float) and value == 0)
