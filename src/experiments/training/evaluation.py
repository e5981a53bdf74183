"""Evaluation of weights on a whole split, and what of it is worth looking at."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.core.experiment import Hparams, Tree
from experiments.data.dataset import Arrays, Batch, Stream
from experiments.training.devices import put_to_read
from experiments.training.distributed import fetch
from experiments.training.feed import evaluation_batches

SHOWN = 16  # examples kept for the figure of sample predictions


@dataclass
class Predictions:
    """Of a classifier the label and predicted class of every example; the first few in full."""

    labels: np.ndarray  # [N], or [0] where the outputs are not one score a class
    predicted: np.ndarray  # [N] or [0]
    first: Batch  # SHOWN rows as stored
    outputs: Any  # SHOWN rows of the objective's predictions


class Evaluator:
    """Runs the compiled evaluation program over one split.

    A split in memory is put on the device once and stays there, and so do the few batches of a
    limited evaluation. The processes that read a stream stay too.
    """

    def __init__(
        self,
        split: Arrays | Stream,
        batch_size: int,
        sharding: NamedSharding,
        limit: int | None = None,
        seed: int = 0,
    ):
        self.split, self.batch_size, self.sharding = split, batch_size, sharding
        self.limit, self.seed = limit, seed
        self._kept: list[dict[str, jax.Array]] | None = None
        self._source: Iterable[Batch] | None = None

    def __call__(
        self, program: Callable, weights: tuple[Tree, Tree], hparams: Hparams
    ) -> dict[str, float]:
        """The mean of every metric over the split."""
        return means([program(weights, batch, hparams)[0] for batch in self.batches()])

    def predict(
        self, program: Callable, weights: tuple[Tree, Tree], hparams: Hparams
    ) -> tuple[dict[str, float], Predictions]:
        """The mean of every metric, and the predictions."""
        sums = []
        labels, predicted = [np.zeros(0, int)], [np.zeros(0, int)]
        first: tuple[Batch, Any] | None = None
        for batch in self.batches():
            of_batch, outputs = program(weights, batch, hparams)
            sums.append(of_batch)
            rows = fetch(batch["mask"]) > 0
            if first is None:
                few = np.flatnonzero(rows)[:SHOWN]
                inputs = {name: array for name, array in batch.items() if name != "mask"}
                first = jax.tree.map(lambda a, few=few: fetch(a)[few], (inputs, outputs))
            scores = isinstance(outputs, jax.Array) and outputs.ndim == 2
            if scores and "label" in batch:
                labels.append(fetch(batch["label"])[rows])
                predicted.append(fetch(outputs)[rows].argmax(axis=-1))
        assert first is not None
        every = np.concatenate(labels), np.concatenate(predicted)
        return means(sums), Predictions(*every, *first)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What a batch looks like."""
        batch = next(iter(evaluation_batches(self.split, self.batch_size, self.seed)))
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}

    def batches(self) -> Iterable[dict[str, jax.Array]]:
        """The split's batches on the device, padded to one shape, each with a `mask`."""
        if self._kept is not None:
            return self._kept
        if isinstance(self.split, Stream) and self.limit is None:
            return self._read()
        self._kept = list(self._read())
        return self._kept

    def _read(self) -> Iterable[dict[str, jax.Array]]:
        if self._source is None:
            self._source = evaluation_batches(self.split, self.batch_size, self.seed)
        for batch in itertools.islice(self._source, self.limit):
            yield {name: put_to_read(array, self.sharding) for name, array in batch.items()}


def means(sums: Sequence[dict[str, jax.Array]]) -> dict[str, Any]:
    """Sums over the examples of each batch, numbers or one a lane, to means over all of them.

    Added up on the host: on the device even that would be a program to compile.
    """
    host = jax.device_get(sums)
    totals = {name: np.sum([batch[name] for batch in host], 0, np.float64) for name in host[0]}
    count = totals.pop("count")
    return {name: (total / count).tolist() for name, total in totals.items()}
