"""What the rest of the project sees of data: a `Spec` before reading, `Splits` after."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

Batch = dict[str, np.ndarray]

INPUTS = ("image", "sequence", "tokens")
"""Names of what a model reads: pixels [B, H, W, C], features [B, T, F] or integers [B, T]."""


def model_input(batch: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and value of what the model reads in a batch."""
    name = next(name for name in INPUTS if name in batch)
    return name, batch[name]


@dataclass(frozen=True)
class Spec:
    """What is known of a data set before anything is read.

    `input_shape` is that of one example: (height, width, channels) for images, (steps, features)
    for sequences, of which tokens stand for one-hot vectors. `num_classes` is the number of a
    model's outputs (of a step). `train_examples` is None where only reading the data can tell, and
    `stored` what an example is made of, None for labelled images.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    train_examples: int | None = None
    stored: Mapping[str, tuple[tuple[int, ...], str]] | None = None

    @property
    def example(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array of one example, as stored."""
        if self.stored is not None:
            return dict(self.stored)
        return {"image": (self.input_shape, "uint8"), "label": ((), "int32")}


@dataclass(frozen=True)
class Arrays:
    """A split that lives in memory or in a memory-mapped file.

    `arrays` holds one of `INPUTS` and what goes with it, for images "image", uint8 [N, H, W, C],
    and "label", int32 [N]. `ordered` examples are trained on in this order, epoch by epoch.
    """

    arrays: dict[str, np.ndarray]
    ordered: bool = False

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, indices: np.ndarray) -> Arrays:
        """The examples at `indices`, int [M], copied."""
        return replace(self, arrays={name: array[indices] for name, array in self.arrays.items()})


class BatchIterator(Protocol, Iterator[Batch]):
    """An iterator over batches whose position can be saved and restored exactly."""

    def get_state(self) -> dict: ...

    def set_state(self, state: dict) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Stream:
    """A split too large for memory, read and decoded batch by batch.

    `open(batch_size, seed, train, rows)` starts the reading; see `iterate`.
    """

    length: int
    open: Callable[[int, int, bool, range | None], BatchIterator]

    def __len__(self) -> int:
        return self.length

    def iterate(
        self, batch_size: int, seed: int, train: bool, rows: range | None = None
    ) -> BatchIterator:
        """Batches of fixed shape: "image" uint8 [B, H, W, C] and "label" int32 [B].

        For training: endless epochs of `len(self) // batch_size` full batches, each epoch in its
        own order. For evaluation: one pass in order, and another one each time that it is iterated
        again; the last batch is padded and "mask", float32 [B], is 1 for real examples and 0 for
        padding. The same seed gives the same batches, bit for bit. With `rows` only these rows of
        each training batch are read.
        """
        return self.open(batch_size, seed, train, rows)


def some_examples(split: Arrays | Stream) -> Batch:
    """Stored examples to take statistics of: up to 5,000, or as few as make 16 million values."""
    if isinstance(split, Arrays):
        count = _enough(len(split), model_input(split.arrays)[1].shape[1:])
        return split.take(np.arange(count) * (len(split) // count)).arrays
    with contextlib.closing(split.iterate(1, 0, train=False)) as one:
        shape = model_input(next(one))[1].shape[1:]
    with contextlib.closing(split.iterate(_enough(len(split), shape), 0, train=False)) as batches:
        return next(batches)


def _enough(length: int, shape: tuple[int, ...]) -> int:
    return min(length, 5000, max(1, 2**24 // math.prod(shape)))


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set, disjoint.

    `fingerprint` identifies the prepared files, so that data that changed on disk is noticed.
    """

    train: Arrays | Stream
    validation: Arrays | Stream
    test: Arrays | Stream
    class_names: tuple[str, ...]
    fingerprint: str
