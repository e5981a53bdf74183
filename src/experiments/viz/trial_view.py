"""A trained trial as its figures see it, and the figures of each kind of objective."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.core.experiment import Experiment
from experiments.data.dataset import Batch
from experiments.objectives import columns
from experiments.objectives.columns import Columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = tuple[Any, Any]  # (params, model_state)

# kinds of objectives with figures after epochs, known without importing matplotlib
DRAWN_DURING_TRAINING = frozenset({"language", "autoencoding", "variational", "adversarial"})


@dataclass(frozen=True)
class Classifier:
    """A trained classifier that scores generated images.

    Args:
      class_names: the names of its classes; empty if its data have none.
      score: from generated and real images, both [n, H, W, C] in 0..1, to metrics and how many
        generated images it takes for each class [classes].
    """

    class_names: tuple[str, ...]
    score: Callable[[np.ndarray, np.ndarray], tuple[dict[str, float], np.ndarray]]


@dataclass(frozen=True)
class Predictions:
    """The predictions of weights on a split.

    Args:
      labels, predicted: the classes of all examples [N]; empty without one score for each class.
      first: the first examples as stored.
      outputs: the objective's predictions of them.
      rows: of many more of the first examples `label` or `target` [M, ...] and, if they are one
        array, `outputs` [M, ...].
    """

    labels: np.ndarray
    predicted: np.ndarray
    first: Batch
    outputs: Any
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialView:
    """A trial as its figures see it.

    Args:
      experiment, hparams: the pure functions of its static configuration, and its own numbers.
      config: its composed config.
      class_names: of a language model the characters; empty if the data name no classes.
      history: reads the lines of its `metrics.jsonl`.
      examples: from the name of a split and a count to the first examples, as stored.
      batches: from the name of a split to all its batches, padded, each with a `mask`.
      split: "test", or "validation" where the test split is to be left alone.
      classifier: opens the classifier that `objective.classifier` names; None if there is none.
      found: what the data said of themselves, such as the scale of a target.
    """

    experiment: Experiment
    hparams: Mapping[str, Any]
    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    history: Callable[[], Sequence[dict[str, float]]]
    examples: Callable[[Any, int], Batch]
    batches: Callable[[Any], Iterable[Mapping[str, jax.Array]]]
    split: str
    classifier: Callable[[], Classifier] | None
    found: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The kind of its objective, such as `classification`."""
        return getattr(self.objective, "kind", "")

    @property
    def objective(self) -> Any:
        return self.experiment.objective(self.hparams)

    @property
    def classes(self) -> int:
        return self.experiment.spec.num_classes

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers."""
        return self.class_names or tuple(map(str, range(self.classes)))

    def table(self, predictions: Predictions) -> Columns:
        """Return the columns of a table of predictions; none unless of one class or of numbers."""
        rows = predictions.rows
        if self.kind == "classification" and "label" in rows:
            found = columns.of_classes(rows["outputs"], rows["label"], self.labels)
        elif self.kind == "regression" and "target" in rows:
            scale, names = (self.found or {}).get("target", {}), columns.targets_of(self.config)
            found = columns.of_numbers(rows["outputs"], rows["target"], scale, names)
        else:
            return {}
        return {"index": np.arange(len(rows["outputs"]))} | found

    def apply(self, function: Callable, weights: Weights, *inputs: Any) -> np.ndarray:
        """Return `function(objective, model, *inputs)` as float32.

        Args:
          function: of the module level, since it is compiled once for all trials of a static
            configuration; it returns one array.
          weights: the model's.
          inputs: arrays.
        """
        outputs = _apply(function, self.experiment, self.hparams, weights, *inputs)
        return np.asarray(outputs, np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(
    function: Callable, experiment: Experiment, hparams: Any, weights: Weights, *inputs: Any
) -> jax.Array:
    model = experiment.trained_model(hparams, *weights)
    return function(experiment.objective(hparams), model, *inputs)


@dataclass(frozen=True)
class Drawings:
    """Figures by name, each drawn when it is called, and metrics of many outputs together."""

    figures: Mapping[str, Callable[[], Figure]]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class KindOfFigures:
    """The figures of a kind of objective.

    Args:
      final: of the best weights and their predictions.
      during: of the weights after an epoch.
      animated: names of those of `during` that are also shown as an animation.
    """

    final: Callable[[TrialView, Weights, Predictions], Drawings]
    during: Callable[[TrialView, Weights], Drawings] | None = None
    animated: tuple[str, ...] = ()


def figures_of(kind: str) -> KindOfFigures:
    """Return the figures of a kind of objective; for an unknown kind the learning curves.

    Imports matplotlib.
    """
    from experiments.viz import classification_figures as classes
    from experiments.viz import image_figures as images
    from experiments.viz import sequence_figures as sequences
    from experiments.viz.figures import curves_of

    kinds = {
        "classification": KindOfFigures(classes.classification),
        "regression": KindOfFigures(sequences.regression),
        "labelling": KindOfFigures(sequences.labelling),
        "language": KindOfFigures(sequences.language, sequences.language_during),
        "autoencoding": KindOfFigures(images.autoencoding, images.autoencoding_during),
        "variational": KindOfFigures(images.variational, images.variational_during, ("samples",)),
        "adversarial": KindOfFigures(images.adversarial, images.adversarial_during, ("samples",)),
    }
    curves = KindOfFigures(lambda trial, *_: Drawings(curves_of(trial, "loss", "accuracy")))
    return kinds.get(kind, curves)
