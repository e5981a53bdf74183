"""Pictures of a model that gives every step of a sequence a class."""

from typing import Any

import numpy as np

from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures, sequence_figures
from experiments.viz.gallery import Gallery as Base


class Gallery(Base):
    """Learning curves and, of tokens, sequences with what was wanted and predicted."""

    def final(self, weights: tuple[Any, Any], predictions: Predictions) -> dict[str, Drawing]:
        history = read_history(self.directory / METRICS)
        drawn = {
            "learning_curves": figures.learning_curves(history, ("loss", "accuracy", "solved"))
        }
        batch = self.session.data.pipeline(predictions.first, None, train=False)
        if "tokens" in batch:
            target = np.asarray(batch["target"])
            counts = np.asarray(batch.get("weight", np.ones(target.shape))) > 0
            tokens, outputs = np.asarray(batch["tokens"]), np.asarray(predictions.outputs)
            drawn["sequences"] = sequence_figures.labelled(tokens, target, outputs, counts)
        return drawn
