"""The data set that the rest of the project sees: a `Spec` before reading, `Splits` after."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from experiments.errors import UserError

Batch = dict[str, np.ndarray]
InOrder = TypeVar("InOrder", str, np.ndarray)

INPUTS = ("image", "sequence", "tokens")
"""Names of a model's input: pixels [B, H, W, C], features [B, T, F] or integers [B, T]."""


def model_input(batch: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the value of a model's input in a batch."""
    name = next(name for name in INPUTS if name in batch)
    return name, batch[name]


@dataclass(frozen=True)
class Spec:
    """The shapes of a data set, known before anything is read.

    Args:
        input_shape: shape of one input: (height, width, channels) of an image, (steps, features) of
            a sequence. Tokens count as one-hot vectors.
        num_classes: outputs of a model, per step where the targets are a sequence.
        train_examples: the most that there can be; None where only reading the data can tell.
        stored: shape and type of each array of one example.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    train_examples: int | None = None
    stored: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    """A split in memory or in a memory-mapped file.

    Args:
        arrays: one of `INPUTS` and what belongs to it, N rows each. For images: "image", uint8
            [N, H, W, C], and "label", int32 [N].
        ordered: train on the examples in this order in every epoch, without shuffling.
    """

    arrays: dict[str, np.ndarray]
    ordered: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, indices: np.ndarray) -> Arrays:
        """Return a copy of the examples at `indices`, int [M]."""
        return replace(self, arrays={name: array[indices] for name, array in self.arrays.items()})


@dataclass(frozen=True)
class Stream:
    """A split too large for memory, read and decoded batch by batch.

    `iterate(batch_size, seed, train, rows=None)` starts an iterator over batches of one shape:
    "image" uint8 [B, H, W, C] and "label" int32 [B]. A `batch_size` of -1 means all examples, and
    `rows` reads only these rows of each training batch. The iterator's `go_to(n)` makes batch `n`
    the next one, and `close()` ends it.

    Training never ends: each epoch is `len(self) // batch_size` full batches in an order of its
    own. Evaluation is one pass in order, and another pass whenever it is iterated again; the last
    batch is padded with zeros, and "mask", float32 [B], is 1 for examples and 0 for padding. The
    same seed gives the same batches, bit for bit.
    """

    length: int
    iterate: Callable[..., Any]

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set, disjoint.

    `fingerprint` identifies the data that were read, so that a change on disk is noticed.
    """

    train: Arrays | Stream
    validation: Arrays | Stream
    test: Arrays | Stream
    class_names: tuple[str, ...]
    fingerprint: str


def as_stored(batch: Mapping[str, Any], key: Any = None, *, train: bool) -> dict[str, Any]:
    """Return the batch unchanged: the pipeline of data in the form that a model reads."""
    return dict(batch)


def some_examples(split: Arrays | Stream) -> Batch:
    """Return stored examples for statistics: up to 5,000, and at most 16 million values."""

    def enough(inputs: np.ndarray) -> int:
        return min(len(split), 5000, max(1, 2**24 // math.prod(inputs.shape[1:])))

    if isinstance(split, Arrays):
        count = enough(model_input(split.arrays)[1])
        return split.take(np.arange(count) * (len(split) // count)).arrays
    with contextlib.closing(split.iterate(1, 0, train=False)) as one:
        count = enough(model_input(next(one))[1])
    with contextlib.closing(split.iterate(count, 0, train=False)) as batches:
        return next(batches)


def hold_out(total: int, fraction: float | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle examples and hold out a share of them.

    Args:
        total: number of examples.
        fraction: share that is held out; None holds out nothing.
        seed: of `numpy.random.PCG64`.

    Returns:
        Indices of the examples to train on and of those held out, int32, in shuffled order.

    Raises:
        UserError: nothing would be held out, or everything.
    """
    order = np.arange(total, dtype=np.int32)  # int32 matters: there may be ten million examples
    np.random.Generator(np.random.PCG64(seed)).shuffle(order)
    if fraction is None:
        return order, order[:0]
    count = number_held_out(total, fraction)
    return order[count:], order[:count]


def number_held_out(total: int, fraction: float) -> int:
    """Return how many examples are this share; raise `UserError` for none of them and for all."""
    count = round(fraction * total)
    if not 0 < count < total:
        raise UserError(
            f"data.validation_fraction={fraction} holds out {count} of {total} examples: "
            f"choose one that leaves some for training and validation"
        )
    return count


def cut(whole: InOrder, held_out: float) -> dict[str, InOrder]:
    """Cut a text or a time series: the last share for testing, as much before it for validation."""
    share = round(len(whole) * held_out)
    first, second = max(len(whole) - 2 * share, 0), len(whole) - share
    return {"train": whole[:first], "validation": whole[first:second], "test": whole[second:]}


def fingerprint(content: bytes) -> str:
    """Return a hash of `content` as 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]
