"""Pictures of an autoencoder."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.tracking.jsonl import METRICS, read_history
from experiments.training.evaluation import Predictions
from experiments.viz.drawing import Drawing, figures, image_figures
from experiments.viz.gallery_images import (
    SCATTERED,
    SHOWN,
    ImageGallery,
    Weights,
    principal,
)


class Gallery(ImageGallery):
    """Inputs beside reconstructions, the code by class, features of the first layer."""

    def during(self, weights: Weights) -> dict[str, Drawing]:
        images, _ = self.examples("validation", SHOWN)
        seen, restored = self.reconstruct(weights, images)
        return {"reconstructions": self.beside(images, seen, restored)}

    def final(self, weights: Weights, predictions: Predictions) -> dict[str, Drawing]:
        history = read_history(self.directory / METRICS)
        images, labels = self.examples("test", SCATTERED)
        codes = self.run("code", lambda model, x: model.encode(x), weights, images)
        points, what = principal(codes)
        shown = {name: np.asarray(array) for name, array in predictions.outputs.items()}
        return {
            "learning_curves": figures.learning_curves(history, ("loss", "squared_error")),
            "reconstructions": self.beside(
                *(shown[n] for n in ("clean", "seen", "reconstruction"))
            ),
            "latents": image_figures.latent_map(points, labels, self.names, what),
            **self.first_layer(weights),
        }

    def reconstruct(self, weights: Weights, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees of images and what it makes of it."""
        objective = self.session.experiment.objective(self.session.hparams)

        def call(model: Any, x: jax.Array) -> jax.Array:
            _, outputs = objective(model, {"image": x}, nnx.Rngs(sample=0), jnp.inf)
            return jnp.stack([outputs["seen"], outputs["reconstruction"]])

        seen, restored = self.run("reconstruct", call, weights, images)
        return seen, restored

    def beside(self, clean: np.ndarray, seen: np.ndarray, restored: np.ndarray) -> Drawing:
        """Clean and, where it is another one, spoilt input beside the output."""
        groups = {"input": clean, "reconstruction": restored}
        if not np.array_equal(clean, seen):
            groups = {"clean": clean, "input": seen, "reconstruction": restored}
        return image_figures.rows(groups)

    def first_kernel(self, params: Any) -> np.ndarray:
        layers = params["hidden"] if "hidden" in params else params["encoder"]["layers"]
        return np.asarray(layers[min(layers)]["kernel"])
