"""Pictures of adversarial networks."""

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures, image_figures
from experiments.viz.gallery_images import STEPS, ImageGallery, Weights, between
from experiments.viz.judge import Judge

SAMPLES = 100
JUDGED = 5000  # samples that the classifier is shown, and as many real images
PAIRS = 6  # of samples to interpolate between
CURVES = ("discriminator_loss", "generator_loss", "real_accuracy", "fake_accuracy")


class Gallery(ImageGallery):
    """Samples on fixed noise, interpolations, and what a classifier takes the samples for."""

    animated = ("samples",)

    def during(self, weights: Weights) -> dict[str, Drawing]:
        return {"samples": self.samples(weights)}

    def final(self, weights: Weights, predictions: Predictions) -> dict[str, Drawing]:
        history = read_history(self.directory / METRICS)
        drawn = {
            "learning_curves": figures.learning_curves(history, CURVES),
            "samples": self.samples(weights),
            "interpolation": self.interpolation(weights),
        }
        if self.judge is not None:
            values, counts = self.judged(weights, "test")
            title = f"taken for (mean confidence {values['confidence']:.1%})"
            drawn["classes"] = image_figures.shares(counts, self.judge.names or self.names, title)
        return drawn

    def measure(self, weights: Weights, split: str) -> dict[str, float]:
        return {} if self.judge is None else self.judged(weights, split)[0]

    @cached_property
    def judge(self) -> Judge | None:
        """The classifier that `objective.classifier` names."""
        folder = self.session.config["objective"]["classifier"]
        if folder is None:
            return None
        return Judge(Path(folder), self.session.experiment.input_shape)

    def judged(self, weights: Weights, split: str) -> tuple[dict[str, float], np.ndarray]:
        """What the judge says of as many samples as it sees real images; see `Judge.compare`."""
        assert self.judge is not None
        real, labels = self.examples(split, JUDGED)
        latents = self.session.config["model"]["latents"]
        return self.judge.compare(
            self.generated(weights, self.noise(len(real), latents), labels), real
        )

    def generated(self, weights: Weights, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Images in 0..1 of noise."""

        def call(model: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
            return (model.generate(z, self.conditions(labels, model.conditional)) + 1) / 2

        return self.run("generate", call, weights, z, labels)

    def samples(self, weights: Weights) -> Drawing:
        """The same noise every time; of a conditional model a class a column."""
        model = self.session.config["model"]
        z = self.noise(SAMPLES, model["latents"])
        images = self.generated(weights, z, np.arange(SAMPLES) % self.classes)
        columns = self.classes if model["conditional"] else None
        return image_figures.grid(images, "samples", columns)

    def interpolation(self, weights: Weights) -> Drawing:
        """From one sample to another one, a pair a row."""
        z = self.noise(2 * PAIRS, self.session.config["model"]["latents"])
        labels = np.repeat(np.arange(PAIRS) % self.classes, STEPS)
        images = self.generated(weights, between(z[0::2], z[1::2]), labels)
        return image_figures.grid(images, "from one sample to another", STEPS)
