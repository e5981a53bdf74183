"""Which training examples are used, and how often each class comes."""

import numpy as np

from experiments.data.dataset import Arrays, Stream
from experiments.errors import UserError


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
