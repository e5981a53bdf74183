"""Pictures of a variational autoencoder."""

from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from experiments.objectives.likelihoods import MEANS
from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures, image_figures
from experiments.viz.gallery_images import (
    SCATTERED,
    STEPS,
    ImageGallery,
    Weights,
    between,
    principal,
)

SAMPLES = 100
SIDE = 20  # of the grid over two latents
PAIRS = 6  # of examples to interpolate between


class Gallery(ImageGallery):
    """Reconstructions, samples, interpolations, and the latents by class and as a map."""

    animated = ("samples",)

    def during(self, weights: Weights) -> dict[str, Drawing]:
        return {"samples": self.samples(weights)}

    def final(self, weights: Weights, predictions: Predictions) -> dict[str, Drawing]:
        history = read_history(self.directory / METRICS)
        images, labels = self.examples("test", SCATTERED)
        means = self.encoded(weights, images, labels)
        points, what = principal(means)
        shown = {name: np.asarray(array) for name, array in predictions.outputs.items()}
        drawn = {
            "learning_curves": figures.learning_curves(history, ("elbo", "reconstruction", "kl")),
            "reconstructions": image_figures.rows(
                {"input": shown["target"], "reconstruction": shown["reconstruction"]}
            ),
            "samples": self.samples(weights),
            "interpolation": self.interpolation(weights, means[: 2 * PAIRS], labels[: 2 * PAIRS]),
            "latents": image_figures.latent_map(points, labels, self.names, what),
            **self.first_layer(weights),
        }
        if means.shape[1] == 2:
            drawn["manifold"] = self.manifold(weights)
        return drawn

    def encoded(self, weights: Weights, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The mean of the latents of images."""

        def call(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            return model.encode(images, self.conditions(labels, model.conditional))[0]

        return self.run("encode", call, weights, images, labels)

    def decoded(self, weights: Weights, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The mean image of latents."""

        def call(model: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
            outputs = model.decode(z, self.conditions(labels, model.conditional))
            return MEANS[model.likelihood](outputs)

        return self.run("decode", call, weights, z, labels)

    def samples(self, weights: Weights) -> Drawing:
        """The same noise every time; of a conditional model a class a column."""
        latents = self.session.config["model"]["latents"]
        labels = np.arange(SAMPLES) % self.classes
        images = self.decoded(weights, self.noise(SAMPLES, latents), labels)
        columns = self.classes if self.session.config["model"]["conditional"] else None
        return image_figures.grid(images, "samples", columns)

    def interpolation(self, weights: Weights, means: np.ndarray, labels: np.ndarray) -> Drawing:
        """From one example to another one, a pair a row."""
        path = between(means[0::2], means[1::2])
        images = self.decoded(weights, path, np.repeat(labels[0::2], STEPS))
        return image_figures.grid(images, "from one test example to another", STEPS)

    def manifold(self, weights: Weights) -> Drawing:
        """Two latents at evenly spaced quantiles of the prior."""
        quantiles = [NormalDist().inv_cdf((i + 0.5) / SIDE) for i in range(SIDE)]
        across, down = np.meshgrid(quantiles, quantiles[::-1])
        z = np.stack([across.ravel(), down.ravel()], axis=1).astype(np.float32)
        images = self.decoded(weights, z, np.zeros(len(z), np.int32))
        return image_figures.grid(images, "the two latents at quantiles of the prior", SIDE)

    def first_kernel(self, params: Any) -> np.ndarray:
        layers = params["encoder"].get("layers", {})
        return np.asarray(layers[min(layers)]["kernel"]) if layers else np.zeros(0)
