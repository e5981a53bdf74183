"""What the galleries of models that make images have in common."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np

from experiments.training.evaluation import evaluation_batches
from experiments.viz.drawing import Drawing, image_figures
from experiments.viz.gallery import Gallery

SHOWN = 16  # examples in a row
SCATTERED = 2000  # examples of a map
STEPS = 10  # from one end of an interpolation to the other

Weights = tuple[Any, Any]


class ImageGallery(Gallery):
    """Runs parts of a model on the test split and on fixed noise."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._compiled: dict[str, Callable] = {}

    def run(self, name: str, function: Callable, weights: Weights, *inputs: Any) -> np.ndarray:
        """`function(model, *inputs)`, compiled once for each `name`."""
        experiment, hparams = self.session.experiment, self.session.hparams

        def call(weights: Weights, *inputs: Any) -> jax.Array:
            return function(experiment.trained_model(hparams, *weights), *inputs)

        if name not in self._compiled:
            self._compiled[name] = jax.jit(call)
        return np.asarray(self._compiled[name](weights, *inputs), np.float32)

    def examples(self, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first images of a split, [n, H, W, C] in 0..1 and in the model's size, and labels."""
        source = getattr(self.session.splits, split)
        count = min(count, len(source))
        batch = next(iter(evaluation_batches(source, count, 0)))
        images = batch["image"].astype(np.float32) / 255
        shape = self.session.experiment.input_shape
        if images.shape[1:] != shape:
            images = np.asarray(jax.image.resize(images, (len(images), *shape), "bilinear"))
        labels = batch.get("label", np.zeros(count, np.int32))
        return images[:count], labels[:count]

    @cached_property
    def classes(self) -> int:
        """How many there are."""
        return self.session.data.spec.num_classes

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.session.splits.class_names or tuple(map(str, range(self.classes)))

    def noise(self, count: int, latents: int) -> np.ndarray:
        """The same every time: [count, latents]."""
        return np.asarray(jax.random.normal(jax.random.key(0), (count, latents)))

    def conditions(self, labels: jax.Array, told: bool) -> jax.Array | None:
        """One-hot classes for a model that is told them."""
        return jax.nn.one_hot(labels, self.classes) if told else None

    def first_layer(self, weights: Weights) -> dict[str, Drawing]:
        """The first layer's features, where they are images."""
        kernel = self.first_kernel(weights[0])
        shape = self.session.experiment.input_shape
        if kernel.ndim == 2 and len(shape) == 3:
            kernel = kernel[: int(np.prod(shape))].reshape(*shape, -1)
        if kernel.ndim != 4:
            return {}
        kernels = np.moveaxis(kernel, -1, 0)[:100]
        return {"first_layer": image_figures.features(kernels, "features of the first layer")}

    def first_kernel(self, params: Any) -> np.ndarray:
        """The kernel of the layer that reads the image."""
        raise NotImplementedError


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points on straight lines: [n, d] twice to [n · STEPS, d]."""
    share = np.linspace(0, 1, STEPS)[None, :, None]
    points = (1 - share) * start[:, None] + share * end[:, None]
    return points.reshape(-1, start.shape[1]).astype(np.float32)


def principal(points: np.ndarray) -> tuple[np.ndarray, str]:
    """(points [n, 2], what they are): as they are in two dimensions, else principal components."""
    if points.shape[1] == 2:
        return points, "latents"
    if points.shape[1] == 1:
        return np.concatenate([points, np.zeros_like(points)], axis=1), "latent"
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T, "first two principal components of the latents"
