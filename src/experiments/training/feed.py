"""The data of the training program: windows of them on the devices.

A window is a set of arrays and an order in which batches are drawn from them. A split in memory is
put on the devices once, and a window is of one epoch; of a streamed split it is a batch.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.rng import root_key
from experiments.data.dataset import Arrays, Batch, Stream
from experiments.training.devices.layout import Layout
from experiments.training.distributed import own_rows, put
from experiments.training.step import epoch_order


@dataclass(frozen=True)
class Window:
    """The batches from `first` to before `end`: the i-th is rows order[i·batch : (i+1)·batch].

    A streamed window is one batch, in its order.
    """

    arrays: Mapping[str, jax.Array]
    order: jax.Array
    first: int
    end: int


class ResidentFeed:
    """A split that is resident on the devices, shuffled there epoch by epoch unless `ordered`.

    Args:
      arrays: the split, on the devices of `layout`; for a `HostFeed` on the host.
      steps_per_epoch: the batches of an epoch.
      seeds: of the order: one for all trials, or of each row one.
      shares: the probability of each example [examples]: an epoch draws as many as there are, with
        replacement. None: an epoch has each once.
    """

    def __init__(
        self,
        arrays: Mapping[str, jax.Array],
        steps_per_epoch: int,
        layout: Layout,
        seeds: Sequence[int],
        ordered: bool,
        shares: np.ndarray | None = None,
    ):
        self.arrays, self.layout, self.ordered, self.shares = arrays, layout, ordered, shares
        self.examples = len(next(iter(arrays.values())))
        self.steps_per_epoch = steps_per_epoch
        self.keys = root_key(np.array(seeds))
        self._newest: tuple[int, jax.Array] | None = None  # an epoch and its order
        # compiles its program beside what comes before the first epoch
        self._compiling = threading.Thread(target=self._order, args=(0,))
        self._compiling.start()

    def windows(self, step: int, end: int) -> Iterator[Window]:
        """Yield the windows of the steps from one to before another."""
        self._compiling.join()
        while step < end:
            epoch, first = divmod(step, self.steps_per_epoch)
            count = min(self.steps_per_epoch - first, end - step)
            if self._newest is None or self._newest[0] != epoch:
                self._newest = epoch, self._order(epoch)
            yield Window(self.arrays, self._newest[1], first, first + count)
            step += count

    def _order(self, epoch: int) -> jax.Array:
        if self.ordered:
            order: Any = np.arange(self.examples, dtype=np.int32)
            if self.layout.own_batches:
                order = np.tile(order, (len(self.keys), 1))
        elif self.layout.own_batches:
            order = jnp.stack([self._drawn(key, epoch) for key in self.keys])
        else:
            order = self._drawn(self.keys[0], epoch)
        return put(order, self.layout.order)

    def _drawn(self, key: jax.Array, epoch: int) -> jax.Array:
        return epoch_order(key, epoch, self.examples, self.shares)


class SentFeed:
    """A split whose batches are put on the devices one by one.

    Of several processes each puts its rows of a batch. The devices of a trial divide a batch, or
    each gets all of one that they do not divide evenly.
    """

    def __init__(self, batch_size: int, layout: Layout):
        place = layout.batches(batch_size)
        self._put_own = functools.partial(jax.make_array_from_process_local_data, place)
        self._order_of_one = put(np.arange(batch_size, dtype=np.int32), layout.order)

    def window(self, batch: Mapping[str, np.ndarray]) -> Window:
        """Return the window of one batch, of which this process has its rows."""
        arrays = {name: self._put_own(rows) for name, rows in batch.items()}
        return Window(arrays, self._order_of_one, 0, 1)


class HostFeed(SentFeed):
    """The batches of a `ResidentFeed`, of a split that is too large for the devices."""

    def __init__(self, batches: ResidentFeed, batch_size: int, layout: Layout):
        super().__init__(batch_size, layout)
        self.batches, self.batch_size = batches, batch_size

    def windows(self, step: int, end: int) -> Iterator[Window]:
        """Yield the windows of the steps from one to before another."""
        own = own_rows(self.batch_size)
        for window in self.batches.windows(step, end):
            order = np.asarray(window.order)
            for first in range(window.first, window.end):
                rows = order[first * self.batch_size :][own.start : own.stop]
                yield self.window({n: np.asarray(a)[rows] for n, a in window.arrays.items()})


class StreamedFeed(SentFeed):
    """A split that is read batch by batch; a batch is read while the one before computes."""

    def __init__(self, split: Stream, batch_size: int, layout: Layout, seed: int):
        super().__init__(batch_size, layout)
        self.batches = split.iterate(batch_size, seed, True, own_rows(batch_size))
        self.position = 0  # of the next window

    def windows(self, step: int, end: int) -> Iterator[Window]:
        """Yield the windows of the steps from one to before another."""
        if step != self.position:
            self.batches.go_to(step)
            self.position = step
        for batch in itertools.islice(self.batches, end - step):
            self.position += 1  # before the yield: who has seen enough does not come back
            yield self.window(batch)


Feed = ResidentFeed | HostFeed | StreamedFeed


def training_examples(split: Arrays | Stream, batch_size: int, count: int, seed: int) -> Batch:
    """Return so many training examples as stored; where their order matters, the first batch."""
    count = min(count, len(split))
    if isinstance(split, Stream):
        with contextlib.closing(split.iterate(count, seed, train=True)) as batches:
            return dict(next(batches))
    if split.ordered:
        return split.take(np.arange(batch_size)).arrays
    drawn = np.random.default_rng(seed).choice(len(split), count, replace=False)
    return split.take(drawn).arrays


def evaluation_batches(split: Arrays | Stream, batch_size: int) -> Iterator[Batch]:
    """Yield a split in order, in batches of one shape; `mask` is 0 on padding of the last one."""
    if isinstance(split, Stream):
        return split.iterate(batch_size, 0, False)
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
