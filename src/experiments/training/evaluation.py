"""Evaluation of weights on a whole split, and what of it is worth looking at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.data.dataset import Arrays, Batch, Stream
from experiments.experiment import Hparams, Tree
from experiments.training.feed import evaluation_batches

SHOWN = 16  # examples kept for the figure of sample predictions


@dataclass
class Predictions:
    """Of every example in order its label and predicted class, and the first few in full."""

    labels: np.ndarray  # [N]
    predicted: np.ndarray  # [N]
    images: np.ndarray  # [SHOWN, H, W, C], as stored
    probabilities: np.ndarray  # [SHOWN, num_classes]


class Evaluator:
    """Runs the compiled evaluation program over one split.

    A split in memory is put on the device once and stays there.
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

    def __call__(
        self, program: Callable, weights: tuple[Tree, Tree], hparams: Hparams
    ) -> dict[str, float]:
        """The mean of every metric over the split."""
        totals: dict[str, Any] = {}
        for batch in self.batches():
            sums, _ = program(weights, batch, hparams)
            totals = sums if not totals else jax.tree.map(jax.numpy.add, totals, sums)
        return means(totals)

    def predict(
        self, program: Callable, weights: tuple[Tree, Tree], hparams: Hparams
    ) -> tuple[dict[str, float], Predictions]:
        """The mean of every metric, and the predictions."""
        totals: dict[str, Any] = {}
        labels, predicted = [], []
        first: tuple[np.ndarray, np.ndarray] | None = None
        for batch in self.batches():
            sums, outputs = program(weights, batch, hparams)
            totals = sums if not totals else jax.tree.map(jax.numpy.add, totals, sums)
            real = np.asarray(batch["mask"]) > 0
            outputs = np.asarray(outputs)
            labels.append(np.asarray(batch["label"])[real])
            predicted.append(outputs[real].argmax(axis=-1))
            if first is None:
                first = np.asarray(batch["image"])[real][:SHOWN], outputs[real][:SHOWN]
        assert first is not None
        every = np.concatenate(labels), np.concatenate(predicted)
        return means(totals), Predictions(*every, *first)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What a batch looks like."""
        batch = next(iter(evaluation_batches(self.split, self.batch_size, self.seed)))
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}

    def batches(self) -> Iterable[dict[str, jax.Array]]:
        """The split's batches on the device, padded to one shape, each with a `mask`."""
        if self._kept is not None:
            return self._kept
        if isinstance(self.split, Stream):
            return self._read()
        self._kept = list(self._read())
        return self._kept

    def _read(self) -> Iterable[dict[str, jax.Array]]:
        for index, batch in enumerate(evaluation_batches(self.split, self.batch_size, self.seed)):
            if index == self.limit:
                return
            yield put(batch, self.sharding)


def put(batch: Batch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """A batch on the device."""
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}


def means(sums: dict[str, Any]) -> dict[str, float]:
    """Sums over examples to means."""
    host = {name: float(value) for name, value in jax.device_get(sums).items()}
    count = host.pop("count")
    return {name: value / count for name, value in host.items()}
