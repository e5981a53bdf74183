"""The data set that the rest of the project sees: a `Spec` before reading, `Splits` after."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from experiments.errors import UserError, unusable
from experiments.machine import expanded

Batch = dict[str, np.ndarray]
InOrder = TypeVar("InOrder", str, np.ndarray)

PARTS = ("train", "validation", "test")
SPLITS = {  # other names of them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ALL = "all"  # the split of examples that are not yet divided
NAMED = 5  # most names in a line

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


class Pictures(Protocol):
    """Labelled pictures on disk, which are read split by split.

    `records(split)` gives random access to pairs of a picture, decoded, and its label: what Grain
    calls a source. Its `chunk((start, stop))` reads at once those of one of its `chunks`, and
    `size` is that of its files in bytes.
    """

    @property
    def name(self) -> str: ...
    @property
    def cache_key(self) -> str: ...
    @property
    def picture_shape(self) -> tuple[int, int, int]: ...
    def num_examples(self, split: str) -> int: ...
    def records(self, split: str) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set, disjoint.

    `fingerprint` identifies the data that were read, so that a change on disk is noticed. `found`
    is what the data themselves said, such as classes and scales, in the form of JSON; the run
    keeps it for later commands, whose `data.found` it is. `test_note` says what a test result is to
    be read with, such as "the test pictures are of another year".
    """

    train: Arrays | Stream
    validation: Arrays | Stream
    test: Arrays | Stream
    class_names: tuple[str, ...]
    fingerprint: str
    found: Mapping[str, Any] | None = None
    test_note: str = ""


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


def resolve_batch_size(requested: int | str, examples: int) -> int:
    """Return the batch size that a config asks for; -1 is the full batch."""
    if isinstance(requested, str):
        raise UserError(f"data.batch_size={requested} is found by mode=train; say a number here")
    if requested == -1:
        return examples
    if not 1 <= requested <= examples:
        raise UserError(
            f"data.batch_size={requested} does not go with {examples} training examples: "
            f"say one of at most {examples}, or data.batch_size=-1 for all of them in one batch"
        )
    return requested


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


def stratified(
    labels: np.ndarray, held_out: float, seed: int, parts: Sequence[str]
) -> dict[str, np.ndarray]:
    """Draw from each class a share for each of the parts; the rest is for training.

    A class of three examples and more has at least one in each part; a smaller one is for training
    alone.

    Args:
        labels: of all examples [N]; of numbers, where there are no classes, all the same.
        held_out: share of each class for each part.
        seed: of `numpy.random.PCG64`.
        parts: any of "validation" and "test".

    Returns:
        Indices for "train", in random order, and for each part, int32, sorted.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(len(labels)).astype(np.int32)
    drawn: dict[str, list[np.ndarray]] = {part: [] for part in ("train", *parts)}
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[by_class])) + 1
    for own in np.split(by_class, starts):
        share = max(round(len(own) * held_out), 1) if len(own) > 2 and held_out else 0
        ends = [share * (i + 1) for i in range(len(parts))]
        *held, train = np.split(own, ends)
        for part, indices in zip((*parts, "train"), (*held, train), strict=True):
            drawn[part].append(indices)
    joined = {part: np.concatenate(indices) for part, indices in drawn.items()}
    chosen = {part: np.sort(indices) for part, indices in joined.items()}
    return chosen | {"train": order[np.isin(order, joined["train"])]}


def parts_of(
    splits: np.ndarray, labels: np.ndarray, held_out: float, seed: int
) -> dict[str, np.ndarray]:
    """Return the indices of the examples of each split: of those that are given, or drawn.

    Args:
        splits: split of each example, [M], or `ALL`.
        labels, held_out, seed: see `stratified`.
    """
    own = {part: np.flatnonzero(splits == part) for part in PARTS}
    given = {part: indices for part, indices in own.items() if len(indices)}
    drawable = given.get("train", np.flatnonzero(splits == ALL))
    missing = [part for part in ("validation", "test") if part not in given]
    drawn = stratified(labels[drawable], held_out, seed, missing)
    return given | {part: drawable[indices] for part, indices in drawn.items()}


def absent_classes(
    parts: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each split that lacks classes which another one has, and their names.

    Args:
        parts: the indices of each split's examples.
        labels: of all examples.
        classes: their names.
    """
    there = {part: set(labels[rows].tolist()) for part, rows in parts.items()}
    every = set().union(*there.values())
    for part, own in there.items():
        if every - own:
            yield part, [classes[number] for number in sorted(every - own)]


def cut(whole: InOrder, held_out: float) -> dict[str, InOrder]:
    """Cut a text or a time series: the last share for testing, as much before it for validation."""
    share = round(len(whole) * held_out)
    first, second = max(len(whole) - 2 * share, 0), len(whole) - share
    return {"train": whole[:first], "validation": whole[first:second], "test": whole[second:]}


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def some(names: Sequence[Any]) -> str:
    """Return the first of many names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


def number_of(things: Sequence[Any], name: str) -> str:
    """Return how many there are, with their name, which has -es in the plural."""
    return f"{len(things)} {name}{'es' if len(things) != 1 else ''}"


def stamp(path: str) -> tuple[int, int]:
    """Return what changes with a file: its size and time.

    Raises:
        UserError: there is no such file.
    """
    try:
        status = expanded(path).stat()
        if expanded(path).is_dir():
            raise IsADirectoryError(21, "")
    except OSError as error:
        raise unusable("data.path", path, error) from error
    return status.st_size, status.st_mtime_ns


def fingerprint(content: bytes) -> str:
    """Return a hash of `content` as 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]
