"""Which training examples are used, and how often each class comes."""

import numpy as np

from experiments.data.dataset import Arrays, Stream
from experiments.errors import UserError
from experiments.types import Limit


def known_count(limit: Limit) -> int | None:
    """Return how many training examples `data.limit` leaves, where that takes no reading."""
    return limit if isinstance(limit, int) else None


def count_of(limit: Limit, total: int) -> int:
    """Return how many of so many examples `data.limit` stands for; a share is at least one."""
    if limit is None:
        return total
    return limit if isinstance(limit, int) else max(1, round(limit * total))


def limited(order: np.ndarray, limit: Limit, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the first of the examples in `order`, int [N]: so many, or a share of each class.

    Args:
        labels: the class of every example, int; None cuts off a share without looking at classes.
    """
    if labels is None or not isinstance(limit, float):
        return order[: count_of(limit, len(order))]
    _, class_of, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(class_of, kind="stable")
    first = np.cumsum(counts) - counts  # of each class, in that order
    rank = np.empty(len(order), int)
    rank[by_class] = np.arange(len(order)) - np.repeat(first, counts)
    wanted = np.array([count_of(limit, count) for count in counts])
    return order[rank < wanted[class_of]]


def labels_of(split: Arrays | Stream, key: str) -> np.ndarray:
    """Return the class of each example, int [N].

    Args:
        key: of the config, with the value that takes them.

    Raises:
        UserError: they are not known without reading everything, or there are none.
    """
    if isinstance(split, Stream):
        raise UserError(f"{key} counts labels, which takes data in memory: say data.stream=false")
    if "label" not in split.arrays:
        raise UserError(f"{key} is for data with a label for each example")
    return split.arrays["label"]


def equal_shares(labels: np.ndarray) -> np.ndarray:
    """Return a probability for each example, float32 [N], by which classes come equally often."""
    _, class_of, count = np.unique(labels, return_inverse=True, return_counts=True)
    return (1 / (len(count) * count[class_of])).astype(np.float32)
