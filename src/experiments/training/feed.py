"""What the training program reads: windows of data on the device.

A window is a set of arrays and an order in which batches are drawn from them. A split in memory is
one window an epoch, put on the device once; a streamed split is a window a batch. The same compiled
program runs both. `arrays` of a feed shows the program what windows look like.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.data.dataset import Arrays, Batch, Stream
from experiments.errors import UserError
from experiments.training.distributed import own_rows, put, put_rows
from experiments.training.program import epoch_order


@dataclass(frozen=True)
class Window:
    """`steps` batches: the i-th is rows order[i·batch : (i+1)·batch] of `arrays`.

    Those before `first` have been trained on. A streamed window is one batch, in its order.
    """

    arrays: Mapping[str, jax.Array]
    order: jax.Array
    steps: int
    first: int = 0


def resolve_batch_size(requested: int, examples: int) -> int:
    """The batch size that a config asks for; -1 is the full batch."""
    if requested == -1:
        return examples
    if not 1 <= requested <= examples:
        raise UserError(
            f"data.batch_size={requested} does not go with {examples} training examples; "
            f"use 1 to {examples}, or -1 for the full batch"
        )
    return requested


class ResidentFeed:
    """A split that is kept on the device and shuffled there, epoch by epoch, unless `ordered`."""

    def __init__(
        self,
        arrays: Mapping[str, jax.Array],
        batch_size: int,
        key: jax.Array,
        sharding: NamedSharding,
        ordered: bool,
    ):
        self.arrays = arrays
        self.examples = len(next(iter(arrays.values())))
        self.steps_per_epoch = self.examples // batch_size
        self.key, self.sharding, self.ordered = key, sharding, ordered
        # compiles its program beside what comes before the first epoch
        self._compiling = threading.Thread(target=self._order, args=(0,))
        self._compiling.start()

    def windows(self, epoch: int, done: int) -> Iterator[Window]:
        """The windows of an epoch of which `done` steps are done."""
        yield Window(self.arrays, self.order(epoch), self.steps_per_epoch, done)

    def order(self, epoch: int) -> jax.Array:
        """The row numbers of an epoch."""
        self._compiling.join()
        return self._order(epoch)

    def _order(self, epoch: int) -> jax.Array:
        if self.ordered:
            return jax.device_put(np.arange(self.examples, dtype=np.int32), self.sharding)
        return put(epoch_order(self.key, epoch, self.examples), self.sharding)


class StreamedFeed:
    """A split that is read batch by batch; a batch is read while the one before computes.

    Of several processes each reads its rows of a batch. `sharding` splits a batch over the devices.
    """

    def __init__(
        self,
        split: Stream,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        sharding: NamedSharding,
    ):
        self.batches = split.iterate(batch_size, seed, True, own_rows(batch_size))
        self.sharding = sharding
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        self.order = put(np.arange(batch_size, dtype=np.int32), everywhere)
        self.position = 0  # of the next window
        self._ahead: Window | None = self._next()
        self.arrays = self._ahead.arrays
        self.epoch_length = steps_per_epoch

    def windows(self, epoch: int, done: int) -> Iterator[Window]:
        """The windows of an epoch of which `done` steps are done; does not end by itself."""
        position = epoch * self.epoch_length + done
        if position != self.position:
            self.batches.set_state({"batches": position})
            self.position, self._ahead = position, None
        while True:
            window, self._ahead = self._ahead or self._next(), None
            self.position += 1  # before the yield: who has seen enough does not come back
            yield window

    def _next(self) -> Window:
        arrays = {k: put_rows(v, self.sharding) for k, v in next(self.batches).items()}
        return Window(arrays, self.order, 1)


def evaluation_batches(split: Arrays | Stream, batch_size: int, seed: int) -> Iterator[Batch]:
    """A split in order, in batches of one shape; `mask` is 0 on the padding of the last one."""
    if isinstance(split, Stream):
        return split.iterate(batch_size, seed, False)
    return _padded_batches(split, batch_size)


def _padded_batches(split: Arrays, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(split), batch_size):
        batch: dict[str, Any] = {
            name: np.asarray(array[start : start + batch_size])
            for name, array in split.arrays.items()
        }
        real = len(next(iter(batch.values())))
        if real < batch_size:
            repeat = np.arange(batch_size) % real
            batch = {name: array[repeat] for name, array in batch.items()}
        yield batch | {"mask": (np.arange(batch_size) < real).astype(np.float32)}
