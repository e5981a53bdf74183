"""The keys of `population`, how runs train side by side, and of `lr_range`."""

from dataclasses import dataclass

from experiments.types import Positive, PositiveInt


@dataclass(frozen=True)
class Options:
    """How the runs of a population share a program.

    Args:
      shared_batches: all see the data in the order of the first one's seed; else each has the order
        of its own seed, as it would alone.
      width: runs computed as one batched computation (null: the fastest, by timing).
      most: runs on the device at once (null: all that a worker took).
    """

    shared_batches: bool
    width: PositiveInt | None
    most: PositiveInt | None


@dataclass(frozen=True)
class LrRange:
    """The keys of `lr_range`.

    Args:
      low, high: the ends of the log range.
      lanes: learning rates in it, evenly spaced on a log axis.
      epochs: that each of them trains.
    """

    low: Positive
    high: Positive
    lanes: PositiveInt
    epochs: PositiveInt
