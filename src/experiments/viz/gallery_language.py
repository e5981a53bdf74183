"""Pictures of a language model."""

from typing import Any

import numpy as np

from experiments.core.generation import generate
from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures, sequence_figures
from experiments.viz.gallery import Gallery as Base

TEMPERATURES = (0.5, 0.8, 1.0)
LENGTH = 600  # characters of a sample
READ = 900  # characters of the text whose surprise is shown


class Gallery(Base):
    """Learning curves, text that it writes, and what of a text surprises it."""

    def during(self, weights: tuple[Any, Any]) -> dict[str, Drawing]:
        return {"generated_text": self._written(weights)}

    def final(self, weights: tuple[Any, Any], predictions: Predictions) -> dict[str, Drawing]:
        history = read_history(self.directory / METRICS)
        window = predictions.first["text"][0].astype(int)
        following = window[1 : READ + 1]
        log_probabilities = predictions.outputs[0, : len(following)]
        nats = -np.take_along_axis(log_probabilities, following[:, None], axis=1)[:, 0]
        characters = self.session.splits.class_names
        text = "".join(characters[code] for code in following)
        return {
            "learning_curves": figures.learning_curves(history, ("loss", "bits_per_character")),
            "generated_text": self._written(weights),
            "surprise": sequence_figures.surprise(text, nats),
        }

    def _written(self, weights: tuple[Any, Any]) -> Drawing:
        session = self.session
        characters, seed = "".join(session.splits.class_names), session.config["seed"]

        def written(temperature: float) -> str:
            return generate(
                session.experiment,
                session.hparams,
                weights,
                characters,
                length=LENGTH,
                prompt=None,
                temperature=temperature,
                seed=seed,
            )

        texts = [(f"temperature {t}", written(t)) for t in TEMPERATURES]
        return sequence_figures.written_text(texts)
