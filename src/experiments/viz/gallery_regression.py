"""Pictures of a model whose targets are numbers."""

from typing import Any

import jax
import numpy as np

from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures, sequence_figures
from experiments.viz.gallery import Gallery as Base


class Gallery(Base):
    """Learning curves; outputs over targets where it is one number, forecasts where several."""

    def final(self, weights: tuple[Any, Any], predictions: Predictions) -> dict[str, Drawing]:
        history = read_history(self.directory / METRICS)
        drawn = {"learning_curves": figures.learning_curves(history, ("loss", "solved"))}
        batch = self.session.data.pipeline(predictions.first, None, train=False)
        target = np.asarray(batch["target"])
        if target[0].size == 1:
            tolerance = self.session.experiment.objective(self.session.hparams).tolerance
            drawn["outputs"] = sequence_figures.against_target(
                *self._all(weights), None if tolerance is None else float(tolerance)
            )
            return drawn
        target = target.reshape(len(target), -1)
        outputs = np.asarray(predictions.outputs).reshape(target.shape)
        read = np.asarray(batch["sequence"])
        # of several features none need be what is forecast
        past = read[..., 0] if read.shape[2:] == (1,) else np.zeros((len(read), 0))
        drawn["forecasts"] = sequence_figures.forecasts(past, target, outputs)
        return drawn

    def _all(self, weights: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The targets and outputs of the whole test split, where they are one number each."""
        experiment, hparams = self.session.experiment, self.session.hparams

        @jax.jit
        def evaluate(weights: tuple[Any, Any], batch: dict[str, jax.Array]) -> jax.Array:
            params, model_state = weights
            return experiment.eval_step(params, model_state, batch, hparams)[1]

        targets, outputs = [], []
        for batch in self.session.evaluator("test").batches():
            real = np.asarray(batch["mask"]) > 0
            stored = {name: array for name, array in batch.items() if name != "mask"}
            prepared = self.session.data.pipeline(stored, None, train=False)
            targets.append(np.ravel(prepared["target"])[real])
            outputs.append(np.ravel(evaluate(weights, batch))[real])
        return np.concatenate(targets), np.concatenate(outputs)
