"""Pictures of a classifier."""

from typing import Any

import numpy as np

from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures
from experiments.viz.gallery import Gallery as Base


class Gallery(Base):
    """Learning curves, confusion matrix and, of images, sample predictions."""

    def final(self, weights: tuple[Any, Any], predictions: Predictions) -> dict[str, Drawing]:
        classes = self.session.data.spec.num_classes
        names = self.session.splits.class_names or tuple(str(i) for i in range(classes))
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (predictions.labels, predictions.predicted), 1)
        drawn = {
            "learning_curves": figures.learning_curves(read_history(self.directory / METRICS)),
            "confusion_matrix": figures.confusion_matrix(counts, names),
        }
        if "image" in predictions.first:
            drawn["sample_predictions"] = figures.sample_predictions(
                predictions.first["image"] / 255,
                predictions.first["label"],
                predictions.outputs,
                names,
            )
        return drawn
