"""Metrics of an evaluation, which are functions of (predictions, batch).

The simple kind returns a value for each example, [batch], and its mean is the metric. What is no
mean over examples is a `Statistic`: sums over them, made on the device, and scalars made of those.
Predictions are the objective's: class probabilities [batch, classes], or numbers, or images by
name. The batch is as the model sees it, and has a `mask` [batch] that is 0 on padding.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.types import PositiveInt

log = logging.getLogger(__name__)

Sums = dict[str, Any]  # of one statistic: arrays, on the host with an axis of trials in front
Batch = Mapping[str, jax.Array]

LARGER_IS_BETTER = frozenset(
    {"accuracy", "acc", "f1", "auc", "auroc", "precision", "recall", "r2", "solved"}
)
SMALLER_IS_BETTER = frozenset({"loss", "error", "perplexity", "mse", "mae", "rmse", "nll"})

CALIBRATION_BINS = 15  # as in Guo et al. 2017
SCORES = 5120  # bins of scores, over all classes
FEWEST, MOST = 256, 4096  # bins of a class


def words(metric: str) -> set[str]:
    """Return the words of a metric's name, by which it is known whether it should be large."""
    return set(re.findall("[a-z0-9]+", metric.lower()))


def monitored(own: tuple[str, str], metric: str | None, mode: str | None) -> tuple[str, str]:
    """Return the metric that decides which epoch is best, and `min`, `max` or `last`.

    Args:
      own: those that an objective goes by.
      metric, mode: those that the config asks for, or None.
    """
    if metric in (None, own[0]):
        return own[0], mode or own[1]
    if mode is None and not words(metric) & (LARGER_IS_BETTER | SMALLER_IS_BETTER):
        log.warning(
            "trainer.monitor=%s: the smallest is taken as the best; if the largest is, say "
            "trainer.monitor_mode=max",
            metric,
        )
    return metric, mode or ("max" if words(metric) & LARGER_IS_BETTER else "min")


class Statistic:
    """A metric of all examples together. Subclasses have sums and scalars of their own."""

    def sums(self, predictions: Any, batch: Batch) -> Sums:
        """Return sums over the examples of a batch, in each of which an example counts `mask`."""
        raise NotImplementedError

    def add(self, one: Sums, other: Sums) -> Sums:
        """Return the sums over two sets of examples together; on the host, in float64."""
        return {name: one[name] + other[name] for name in one}

    def scalars(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return metrics by name, each [trials], of sums [trials, ...] over all examples."""
        raise NotImplementedError


def label_of(batch: Batch) -> jax.Array:
    """Return the class of each example, int [batch]."""
    label = batch["label"]
    return label if label.ndim == 1 else jnp.argmax(label, axis=-1)


def top_k_accuracy(probabilities: jax.Array, batch: Batch, *, k: PositiveInt) -> jax.Array:
    """Return 1 where the label is among the k classes of the highest probability, else 0."""
    label = label_of(batch)[:, None]
    own = jnp.take_along_axis(probabilities, label, axis=-1)
    later = jnp.arange(probabilities.shape[-1]) > label  # which of two equal ones goes first
    before = (probabilities > own) | ((probabilities == own) & later)
    return jnp.sum(before, axis=-1) < k


class PerClass(Statistic):
    """Precision, recall and F1 of each class, and their means over the classes.

    As scikit-learn's with `average="macro"`: over the classes that occur as label or prediction.
    `balanced_accuracy` is the mean recall of those that occur as a label.
    """

    def sums(self, probabilities: jax.Array, batch: Batch) -> Sums:
        classes, mask = probabilities.shape[-1], batch["mask"][:, None]
        true = jax.nn.one_hot(label_of(batch), classes) * mask
        predicted = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), classes)
        found = {"support": true, "predicted": predicted * mask, "hits": true * predicted}
        return {name: jnp.sum(values, axis=0) for name, values in found.items()}

    def table(self, sums: Sums) -> dict[str, np.ndarray]:
        """Return the columns of a table with a row for each class, each [trials, classes]."""
        support, predicted, hits = sums["support"], sums["predicted"], sums["hits"]
        return {
            "support": support,
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(support + predicted, 1),
        }

    def scalars(self, sums: Sums) -> dict[str, np.ndarray]:
        table = self.table(sums)
        labelled = table["support"] > 0
        occurring = labelled | (sums["predicted"] > 0)
        return {
            "balanced_accuracy": mean_where(labelled, table["recall"]),
            "macro_f1": mean_where(occurring, table["f1"]),
            "precision": mean_where(occurring, table["precision"]),
            "recall": mean_where(occurring, table["recall"]),
        }


class Ranking(Statistic):
    """Area under the ROC curve and average precision, each class against all others.

    Both are means over the classes that occur, and would need all scores sorted. Instead scores are
    counted in bins, evenly spaced in the sigmoid of a quarter of the log-odds, which is finest
    around 1/2 and still tells 1e-6 from 1e-7. The examples of a bin count as spread evenly over
    it. Against scores that are sorted one by one it is off by less than 1e-3 for a few hundred
    examples, and by less than 2e-4 from ten thousand on.
    """

    def __init__(self, classes: int):
        self.bins = min(max(SCORES // classes, FEWEST), MOST)

    def sums(self, probabilities: jax.Array, batch: Batch) -> Sums:
        classes, mask, label = probabilities.shape[-1], batch["mask"], label_of(batch)
        score, rest = jnp.sqrt(jnp.sqrt(probabilities)), jnp.sqrt(jnp.sqrt(1 - probabilities))
        place = (self.bins * score / (score + rest)).astype(jnp.int32)
        place = jnp.clip(place, 0, self.bins - 1)
        table = jnp.arange(classes) + classes * (jnp.arange(classes) == label[:, None])
        counts = jnp.zeros(2 * classes * self.bins)
        counts = counts.at[table * self.bins + place].add(mask[:, None], mode="promise_in_bounds")
        return {"counts": counts.reshape(2, classes, self.bins)}  # of other classes, of its own

    def scalars(self, sums: Sums) -> dict[str, np.ndarray]:
        *shape, _, classes, bins = sums["counts"].shape
        negative, positive = np.moveaxis(sums["counts"], -3, 0).reshape(2, -1, bins)
        negatives, positives = negative.sum(axis=-1), positive.sum(axis=-1)
        # bins with positive examples, which are few, class by class and by rising score
        row, place = np.nonzero(positive > 0)
        here = positive[row, place]
        true = positives.cumsum()[row] - here.cumsum()  # positive examples of higher scores
        false = negatives[row] - negative.cumsum(axis=-1)[row, place] + negative[row, place] / 2
        pairs = np.bincount(row, here * false, len(positive))
        true += (here + 1) / 2  # a positive example is among those that are found with it
        precision = np.bincount(row, here * true / (true + false), len(positive))
        ranked = 1 - pairs / np.maximum(positives * negatives, 1)
        average = precision / np.maximum(positives, 1)
        columns = {
            "auroc": (positives * negatives > 0, ranked),
            "average_precision": (positives > 0, average),
        }
        return {
            name: mean_where(*(column.reshape(*shape, classes) for column in pair))
            for name, pair in columns.items()
        }


class Calibration(Statistic):
    """Expected calibration error: the gap between confidence and accuracy, averaged over bins.

    References: Guo et al. 2017, "On calibration of modern neural networks", with 15 equal bins.
    """

    def sums(self, probabilities: jax.Array, batch: Batch) -> Sums:
        confidence = jnp.max(probabilities, axis=-1)
        hit = jnp.argmax(probabilities, axis=-1) == label_of(batch)
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1, dtype=np.float32)
        inside = (confidence[:, None] > edges[:-1]) & (confidence[:, None] <= edges[1:])
        gap = (confidence - hit) * batch["mask"]
        return {"gap": jnp.sum(inside * gap[:, None], axis=0), "count": jnp.sum(batch["mask"])}

    def scalars(self, sums: Sums) -> dict[str, np.ndarray]:
        gaps = np.sum(np.abs(sums["gap"]), axis=-1)
        return {"calibration_error": gaps / np.maximum(sums["count"], 1)}


class Errors(Statistic):
    """Errors of numbers, in the unit that the data give as `unit`, and the variance explained.

    Each is the mean over the numbers of an example, as scikit-learn's with `uniform_average`.
    """

    def sums(self, outputs: jax.Array, batch: Batch) -> Sums:
        rows, mask = outputs.shape[0], batch["mask"][:, None]
        unit = batch.get("unit", jnp.ones(rows)).reshape(rows, -1)
        target = batch["target"].reshape(rows, -1)
        error, target = (outputs.reshape(rows, -1) - target) * unit, target * unit
        count = jnp.sum(mask)
        mean = jnp.sum(target * mask, axis=0) / jnp.maximum(count, 1)
        return {
            "count": count[None],
            "mean": mean,
            "deviation": jnp.sum((target - mean) ** 2 * mask, axis=0),  # squared
            "squared": jnp.sum(error**2 * mask, axis=0),
            "absolute": jnp.sum(jnp.abs(error) * mask, axis=0),
        }

    def add(self, one: Sums, other: Sums) -> Sums:
        """Add up, deviations by their distance from the common mean (Chan et al. 1979).

        A plain sum of squares would lose all digits where the mean is large.
        """
        both = super().add(one, other)
        share = other["count"] / np.maximum(both["count"], 1)
        distance = other["mean"] - one["mean"]
        both["mean"] = one["mean"] + distance * share
        both["deviation"] += distance**2 * one["count"] * share
        return both

    def scalars(self, sums: Sums) -> dict[str, np.ndarray]:
        count, squared, deviation = np.maximum(sums["count"], 1), sums["squared"], sums["deviation"]
        constant = np.where(squared > 0, 0.0, 1.0)  # as scikit-learn has it
        explained = 1 - squared / np.where(deviation > 0, deviation, 1)
        return {
            "rmse": np.sqrt(squared / count).mean(axis=-1),
            "mae": (sums["absolute"] / count).mean(axis=-1),
            "r2": np.where(deviation > 0, explained, constant).mean(axis=-1),
        }


def mean_where(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis where `chosen`; NaN where nothing is."""
    count = np.sum(chosen, axis=-1)
    total = np.sum(np.where(chosen, values, 0), axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
