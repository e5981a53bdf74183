"""Evaluation of weights on a whole split, and the predictions that figures show."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.data.dataset import Arrays, Batch, Stream
from experiments.training.distributed import fetch, put_to_read
from experiments.training.feed import evaluation_batches
from experiments.training.metrics import Line
from experiments.viz.trial_view import Predictions

SHOWN = 16  # examples with predictions in full


class Evaluator:
    """The evaluation of weights on one split by a compiled program.

    A split in memory is put on the devices once and stays there, and so do the few batches of a
    limited evaluation. The processes that read a stream stay too.

    Args:
      sharding: of a batch.
      limit: most batches (None: the whole split).
    """

    def __init__(
        self, split: Arrays | Stream, batch_size: int, sharding: NamedSharding, limit: int | None
    ):
        self.split, self.batch_size = split, batch_size
        self.sharding, self.limit = sharding, limit
        self._resident: list[dict[str, jax.Array]] | None = None
        self._source: Iterable[Batch] | None = None

    def measure(self, program: Callable) -> list[Line]:
        """Return the mean of every metric over the split, for each row of a stack.

        Args:
          program: `program(batch) -> (sums, predictions)`.
        """
        return means([program(batch)[0] for batch in self.batches()])

    def predict(self, program: Callable) -> tuple[Line, Predictions]:
        """Return the mean of every metric, and the predictions, of a stack of one."""
        sums, labels, predicted = [], [np.zeros(0, int)], [np.zeros(0, int)]
        first: tuple[Batch, Any] | None = None
        for batch in self.batches():
            of_batch, outputs = program(batch)
            sums.append(of_batch)
            rows = fetch(batch["mask"]) > 0
            if first is None:
                few = np.flatnonzero(rows)[:SHOWN]
                inputs = {name: fetch(a)[few] for name, a in batch.items() if name != "mask"}
                first = inputs, jax.tree.map(lambda a, few=few: fetch(a)[0][few], outputs)
            if isinstance(outputs, jax.Array) and outputs.ndim == 3 and "label" in batch:
                labels.append(fetch(batch["label"])[rows])
                predicted.append(fetch(outputs)[0][rows].argmax(axis=-1))
        assert first is not None
        every = np.concatenate(labels), np.concatenate(predicted)
        return means(sums)[0], Predictions(*every, *first)

    def batches(self) -> Iterable[dict[str, jax.Array]]:
        """Return the split's batches on the devices, padded to one shape, each with a `mask`."""
        if self._resident is not None:
            return self._resident
        if isinstance(self.split, Stream) and self.limit is None:
            return self._read()
        self._resident = list(self._read())
        return self._resident

    def _read(self) -> Iterable[dict[str, jax.Array]]:
        if self._source is None:
            self._source = evaluation_batches(self.split, self.batch_size)
        for batch in itertools.islice(self._source, self.limit):
            yield {name: put_to_read(array, self.sharding) for name, array in batch.items()}


def means(sums: Sequence[dict[str, jax.Array]]) -> list[Line]:
    """Return the mean over all examples for each row, from sums [rows] over those of each batch.

    Added up on the host: on the device even that would be a program to compile.
    """
    host = jax.device_get(sums)
    totals = {name: np.sum([batch[name] for batch in host], 0, np.float64) for name in host[0]}
    count = totals.pop("count")
    columns = {name: (total / count).tolist() for name, total in totals.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
