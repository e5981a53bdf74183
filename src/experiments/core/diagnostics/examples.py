"""How a classifier sees many examples: worst mistakes, and what its last layer reads."""

import heapq
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.diagnostics.attribution import Weights, answer, prepared
from experiments.core.diagnostics.layers import has_weights
from experiments.core.experiment import Experiment
from experiments.data.dataset import model_input


class Mistake(NamedTuple):
    """A wrongly classified example.

    Attributes:
      loss: of the example.
      index: in its split.
      label, predicted: numbers of the true class and the likeliest one.
      example: its input as stored.
      predictions: [classes].
    """

    loss: Any
    index: Any
    label: Any
    predicted: Any
    example: np.ndarray
    predictions: np.ndarray


class Classified(NamedTuple):
    """What is found in the examples of a split.

    Attributes:
      mistakes: those with the highest losses, the worst first.
      features: what the last layer reads of the first examples, [n, features]; maps are averaged
        over their positions.
      labels: [n].
    """

    mistakes: list[Mistake]
    features: np.ndarray
    labels: np.ndarray


def classify(
    experiment: Experiment,
    weights: Weights,
    batches: Iterable[Mapping[str, Any]],
    *,
    mistakes: int,
    features: int,
) -> Classified:
    """Look at all examples of a split.

    Args:
      batches: as stored, padded to one shape, each with a `mask`.
      mistakes: the most that are returned.
      features: of how many examples they are.
    """

    @jax.jit
    def examined(weights: Weights, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        last: list[jax.Array] = []

        def seen(name: str, layer: nnx.Module, given: Any, output: jax.Array) -> jax.Array:
            last[:] = [given]
            return output

        values, scores = answer(experiment, weights, prepared(experiment, batch), seen, has_weights)
        read = last[0].astype(jnp.float32)
        read = read.reshape(len(read), -1, read.shape[-1]).mean(axis=1)
        return values["loss"], experiment.objective({}).predictions(scores), read

    worst: list[Mistake] = []
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    first = 0
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        inputs, label = (np.asarray(x)[real] for x in (model_input(batch)[1], batch["label"]))
        losses, predictions, read = (np.asarray(x)[real] for x in examined(weights, batch))
        predicted = predictions.argmax(axis=-1)
        found = [
            Mistake(losses[i], first + i, label[i], predicted[i], inputs[i], predictions[i])
            for i in np.flatnonzero(predicted != label)
        ]
        worst = heapq.nlargest(mistakes, [*worst, *found], key=lambda one: one.loss)
        if first < features:
            rows.append(read[: features - first])
            labels.append(label[: features - first])
        first += len(label)
    return Classified(worst, np.concatenate(rows), np.concatenate(labels))
