"""The splits of a data set on the devices, and the evaluation of weights on one of them."""

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.core.config import build
from experiments.core.metrics import Metrics, scalars_of, statistics
from experiments.data.dataset import Arrays, Batch, Splits, Stream
from experiments.data.sampling import equal_shares, labels_of
from experiments.objectives.losses import with_class_weights
from experiments.training.devices.memory import may_stay
from experiments.training.distributed import fetch, put_to_read
from experiments.training.feed import evaluation_batches
from experiments.training.metrics import Line
from experiments.viz.trial_view import Predictions

log = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]

SHOWN = 16  # examples with predictions in full
ROWS = 10_000  # examples whose class probabilities or numbers go into a table
AHEAD = 2  # batches that devices compute while the sums of earlier ones are added up


class Measured(NamedTuple):
    """The evaluation of a trial: its metrics, and of a classifier the columns of a table."""

    line: Line
    per_class: dict[str, np.ndarray]  # by the name of the column: of each class a number

    def classes(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Return `classes`, the rows of the table, for a summary; of other tasks nothing.

        Args:
          names: of the classes; empty if the data have none.
        """
        if not self.per_class:
            return {}
        columns = {"support": self.per_class["support"].astype(int)}
        columns = {name: column.tolist() for name, column in (self.per_class | columns).items()}
        rows = zip(*columns.values(), strict=True)
        return {
            "classes": [
                {"class": names[i] if names else str(i), **dict(zip(columns, row, strict=True))}
                for i, row in enumerate(rows)
            ]
        }


class Evaluator:
    """The evaluation of weights on one split by a compiled program.

    A split in memory is put on the devices once and stays there, if there is room, and so do the
    few batches of a limited evaluation of a stream. The processes that read a stream stay too.

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

    def measure(self, program: Callable, metrics: Metrics) -> list[Measured]:
        """Return every metric over the split, for each row of a stack.

        Args:
          program: `program(batch) -> (sums, predictions)`.
          metrics: those that the program has sums of, beside the objective's own values.
        """
        totals = Totals(metrics)
        for batch in self.batches():
            totals.add(program(batch)[0])
        return totals.measured()

    def predict(self, program: Callable, metrics: Metrics) -> tuple[Measured, Predictions]:
        """Return every metric, and the predictions, of a stack of one."""
        totals, labels, predicted = Totals(metrics), [np.zeros(0, int)], [np.zeros(0, int)]
        first: tuple[Batch, Any] | None = None
        many: dict[str, list[np.ndarray]] = {}
        for batch in self.batches():
            of_batch, outputs = program(batch)
            totals.add(of_batch)
            rows = fetch(batch["mask"]) > 0
            if first is None:
                few = np.flatnonzero(rows)[:SHOWN]
                inputs = {name: fetch(a)[few] for name, a in batch.items() if name != "mask"}
                first = inputs, jax.tree.map(lambda a, few=few: fetch(a)[0][few], outputs)
            if isinstance(outputs, jax.Array) and outputs.ndim == 3 and "label" in batch:
                labels.append(fetch(batch["label"])[rows])
                predicted.append(fetch(outputs)[0][rows].argmax(axis=-1))
            if (truth := _truth(batch, outputs)) and sum(map(len, many.get(truth, ()))) < ROWS:
                many.setdefault(truth, []).append(fetch(batch[truth])[rows])
                many.setdefault("outputs", []).append(fetch(outputs)[0][rows])
        assert first is not None
        every = np.concatenate(labels), np.concatenate(predicted)
        table = {name: np.concatenate(arrays)[:ROWS] for name, arrays in many.items()}
        return totals.measured()[0], Predictions(*every, *first, table)

    def outputs(self, program: Callable) -> tuple[Batch, Any]:
        """Return all examples as stored, and the predictions for them, of a stack of one."""
        parts = []
        for batch in self.batches():
            rows = fetch(batch["mask"]) > 0
            of_batch = jax.tree.map(lambda a: fetch(a)[0], program(batch)[1])
            examples = {name: fetch(a) for name, a in batch.items() if name != "mask"}
            parts.append(jax.tree.map(lambda a, rows=rows: a[rows], (examples, of_batch)))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def batches(self) -> Iterable[dict[str, jax.Array]]:
        """Return the split's batches on the devices, padded to one shape, each with a `mask`."""
        if self._resident is not None:
            return self._resident
        limited_stream = self.limit is not None and isinstance(self.split, Stream)
        if not _stays(self.split) and not limited_stream:
            return self._read()
        self._resident = list(self._read())
        return self._resident

    def _read(self) -> Iterable[dict[str, jax.Array]]:
        if self._source is None or isinstance(self.split, Arrays):
            self._source = evaluation_batches(self.split, self.batch_size)
        for batch in itertools.islice(self._source, self.limit):
            yield {name: put_to_read(array, self.sharding) for name, array in batch.items()}


def _stays(split: Arrays | Stream) -> bool:
    """Return whether devices hold a split as long as there are trainings with it."""
    return isinstance(split, Arrays) and may_stay(split.arrays)


def _truth(batch: Mapping[str, Any], outputs: Any) -> str | None:
    """Return the name of what is predicted, one class or some numbers of each example."""
    if not isinstance(outputs, jax.Array):
        return None
    if outputs.ndim == 3 and "label" in batch:
        return "label"
    return "target" if "target" in batch else None


class Data:
    """The splits of a data set, and what devices hold of them."""

    def __init__(self, splits: Splits):
        self.splits = splits
        self._resident: dict[NamedSharding, dict[str, jax.Array]] = {}
        self._evaluators: dict[tuple, Evaluator] = {}

    @functools.cached_property
    def streamed(self) -> bool:
        """Whether training batches go to the devices one by one."""
        train = self.splits.train
        if isinstance(train, Arrays) and not _stays(train):
            log.info("the training data are too large to stay on a device: batches are sent there")
        return not _stays(train)

    def weighted(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a config with numbers in the place of `loss.class_weights=balanced`."""

        def counts() -> Sequence[int]:
            labels = labels_of(self.splits.train, "loss.class_weights=balanced")
            return np.bincount(labels, minlength=build(config["data"]).spec.num_classes).tolist()

        return with_class_weights(config, counts)

    @functools.cached_property
    def balanced(self) -> np.ndarray:
        """The probability of each training example where all classes are drawn equally often."""
        return equal_shares(labels_of(self.splits.train, "data.sampler=balanced"))

    def resident(self, sharding: NamedSharding) -> dict[str, jax.Array]:
        """Return the training split on the devices; they hold it once, whoever asks."""
        if sharding not in self._resident:
            assert isinstance(self.splits.train, Arrays)
            arrays = self.splits.train.arrays
            self._resident[sharding] = {n: put_to_read(a, sharding) for n, a in arrays.items()}
        return self._resident[sharding]

    def evaluator(
        self, split: Split, batch_size: int, sharding: NamedSharding, limit: int | None
    ) -> Evaluator:
        """Return the evaluation of a split in batches that are divided so, at most `limit`."""
        key = (split, batch_size, sharding, limit)
        if key not in self._evaluators:
            data = getattr(self.splits, split)
            self._evaluators[key] = Evaluator(data, batch_size, sharding, limit)
        return self._evaluators[key]


class Totals:
    """Sums over batches, for each row of a stack [rows, ...], added up on the host in float64.

    On the device even that would be a program to compile.
    """

    def __init__(self, metrics: Metrics):
        self.metrics, self.statistics = metrics, statistics(metrics)
        self._waiting: deque[dict[str, Any]] = deque()  # on the devices
        self._means: list[dict[str, np.ndarray]] = []  # of each batch
        self._sums: dict[str, dict[str, np.ndarray]] = {}  # of each statistic

    def add(self, sums: dict[str, Any]) -> None:
        """Add the sums over a batch, once the devices have them."""
        self._waiting.append(sums)
        if len(self._waiting) > AHEAD:
            self._take()

    def measured(self) -> list[Measured]:
        """Return the evaluation of each row."""
        while self._waiting:
            self._take()
        totals: dict[str, Any] = {
            name: np.sum([batch[name] for batch in self._means], 0, np.float64)
            for name in self._means[0]
        }
        columns = scalars_of(self.metrics, totals | self._sums)
        per_class: dict[str, np.ndarray] = {}
        for name, statistic in self.statistics.items():
            if hasattr(statistic, "table"):
                per_class |= statistic.table(self._sums[name])
        return [
            Measured(
                {name: float(values[row]) for name, values in columns.items()},
                {name: values[row] for name, values in per_class.items()},
            )
            for row in range(len(totals["count"]))
        ]

    def _take(self) -> None:
        host = jax.device_get(self._waiting.popleft())
        for name, statistic in self.statistics.items():
            sums = {key: np.asarray(array, np.float64) for key, array in host.pop(name).items()}
            before = self._sums.get(name)
            self._sums[name] = sums if before is None else statistic.add(before, sums)
        self._means.append(host)
