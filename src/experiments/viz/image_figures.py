"""Figures of models that generate images: autoencoders, VAEs and adversarial networks."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.core.diagnostics.embeddings import principal_components
from experiments.viz import plane_figures as plane
from experiments.viz.figures import FAINT, INK, PICTURE, curves_of, new_figure, one_panel
from experiments.viz.trial_view import Drawings, Predictions, TrialView, Weights

SHOWN = 16  # examples in a row
SCATTERED = 2000  # examples of a map of latents
SAMPLES = 100
SCORED = 5000  # samples that a classifier scores, and as many real images
PAIRS = 6  # pairs of images to interpolate between
STEPS = 10  # images of an interpolation, with both ends
SIDE = 20  # of the grid over two latents
COLOURED = 20  # most classes that have a colour each


def autoencoding(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return inputs beside reconstructions, a map of the codes and the first layer."""
    curves = curves_of(trial, "loss", "squared_error")
    if not _pictures(trial):
        return Drawings(curves)
    images, labels = _examples(trial, trial.split, SCATTERED)
    codes = trial.apply(_code, weights, images)
    params, shown = weights[0], predictions.outputs
    layers = params["hidden"] if "hidden" in params else params["encoder"]["layers"]
    figures = {
        **curves,
        "reconstructions": lambda: _beside(shown["clean"], shown["seen"], shown["reconstruction"]),
        "latents": lambda: latent_map(codes, labels, trial.labels),
        **_first_layer(trial, layers),
    }
    return Drawings(figures)


def autoencoding_during(trial: TrialView, weights: Weights) -> Drawings:
    """Return inputs beside reconstructions."""
    if not _pictures(trial):
        return Drawings({})
    images, _ = _examples(trial, "validation", SHOWN)
    seen, restored = trial.apply(_reconstruct, weights, images)
    return Drawings({"reconstructions": lambda: _beside(images, seen, restored)})


def variational(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return reconstructions, samples, interpolations and the latents as a map."""
    curves = curves_of(trial, "elbo", "reconstruction", "kl")
    if not _pictures(trial):
        return Drawings(curves | dict(variational_during(trial, weights).figures))
    shown = predictions.outputs
    images, labels = _examples(trial, trial.split, SCATTERED)
    means = trial.apply(_encode, weights, images, labels)
    ends = means[: 2 * PAIRS], labels[: 2 * PAIRS : 2], "from one test example to another"

    def manifold() -> Figure:
        quantiles = [NormalDist().inv_cdf((i + 0.5) / SIDE) for i in range(SIDE)]
        across, down = np.meshgrid(quantiles, quantiles[::-1])
        z = np.stack([across.ravel(), down.ravel()], axis=1).astype(np.float32)
        decoded = trial.apply(_generate, weights, z, np.zeros(len(z), np.int32))
        return grid(decoded, "the two latents at quantiles of the prior", SIDE)

    figures = {
        **curves,
        "reconstructions": lambda: rows(
            {"input": shown["target"], "reconstruction": shown["reconstruction"]}
        ),
        **variational_during(trial, weights).figures,
        "interpolation": lambda: _interpolation(trial, weights, *ends),
        "latents": lambda: latent_map(means, labels, trial.labels),
        **_first_layer(trial, weights[0]["encoder"].get("layers", {})),
    }
    return Drawings(figures | ({"manifold": manifold} if means.shape[1] == 2 else {}))


def variational_during(trial: TrialView, weights: Weights) -> Drawings:
    """Return samples."""
    return _samples(trial, weights)


def adversarial(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return samples, interpolations, and the classes that a classifier sees in samples."""
    losses = ("discriminator_loss", "generator_loss", "real_accuracy", "fake_accuracy")
    curves, drawn = curves_of(trial, *losses), _samples(trial, weights).figures
    if not _pictures(trial):
        return Drawings(curves | dict(drawn))
    z, labels = _noise(trial, 2 * PAIRS), np.arange(PAIRS) % trial.classes
    ends = z, labels, "from one sample to another"
    figures = {
        **curves,
        **drawn,
        "interpolation": lambda: _interpolation(trial, weights, *ends),
    }
    if trial.classifier is None:
        return Drawings(figures)
    metrics, counts = _scored(trial, weights, trial.split)
    names = trial.classifier().class_names or trial.labels
    title = f"taken for (mean confidence {metrics['confidence']:.1%})"
    return Drawings(figures | {"classes": lambda: shares(counts, names, title)}, metrics)


def adversarial_during(trial: TrialView, weights: Weights) -> Drawings:
    """Return samples, and their scores by a classifier."""
    metrics = _scored(trial, weights, "validation")[0] if trial.classifier else {}
    return Drawings(_samples(trial, weights).figures, metrics)


# ---------------------------------------------------------------------- what models compute


def _code(objective: Any, model: Any, images: jax.Array) -> jax.Array:
    return model.encode(images)


def _reconstruct(objective: Any, model: Any, images: jax.Array) -> jax.Array:
    _, outputs = objective(model, {"image": images}, nnx.Rngs(sample=0), None)
    return jnp.stack([outputs["seen"], outputs["reconstruction"]])


def _encode(objective: Any, model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    classes = jax.nn.one_hot(labels, objective.num_classes) if model.conditional else None
    return model.encode(images, classes)[0]


def _generate(objective: Any, model: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
    return objective.generated(model, z, labels)


def _pictures(trial: TrialView) -> bool:
    return len(trial.experiment.input_shape) == 3


def _samples(trial: TrialView, weights: Weights) -> Drawings:
    """Return samples of the same noise every time; of a conditional model a class per column."""

    def draw() -> Figure:
        count = SAMPLES if _pictures(trial) else plane.SHOWN
        labels = np.arange(count) % trial.classes
        images = trial.apply(_generate, weights, _noise(trial, count), labels)
        if not _pictures(trial):
            return plane.samples(trial, plane.points_of(images))
        conditional = trial.config["model"]["conditional"]
        return grid(images, "samples", trial.classes if conditional else None)

    return Drawings({"samples": draw} if _pictures(trial) or plane.in_plane(trial) else {})


def _interpolation(
    trial: TrialView,
    weights: Weights,
    ends: np.ndarray,
    classes: np.ndarray,
    title: str,
) -> Figure:
    """Draw a row for each pair of latents that follow each other in `ends` [2 PAIRS, latents]."""
    share = np.linspace(0, 1, STEPS)[None, :, None]
    points = (1 - share) * ends[0::2, None] + share * ends[1::2, None]
    z = points.reshape(-1, ends.shape[1]).astype(np.float32)
    images = trial.apply(_generate, weights, z, np.repeat(classes, STEPS))
    return grid(images, title, STEPS)


def _scored(trial: TrialView, weights: Weights, split: str) -> tuple[dict[str, float], np.ndarray]:
    """Score as many samples as there are real images; see `Classifier.score`."""
    assert trial.classifier is not None
    real, labels = _examples(trial, split, SCORED)
    z = _noise(trial, len(real))
    return trial.classifier().score(trial.apply(_generate, weights, z, labels), real)


def _noise(trial: TrialView, count: int) -> np.ndarray:
    """Return the same latents every time: [count, latents]."""
    shape = (count, trial.config["model"]["latents"])
    return np.asarray(jax.random.normal(jax.random.key(0), shape))


def _examples(trial: TrialView, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images [n, H, W, C] in 0..1, of the model's size, and labels [n]."""
    batch = trial.examples(split, count)
    images = batch["image"].astype(np.float32) / 255
    shape = trial.experiment.input_shape
    if images.shape[1:] != shape:
        images = np.asarray(jax.image.resize(images, (len(images), *shape), "bilinear"))
    return images, batch.get("label", np.zeros(len(images), np.int32))


def _first_layer(trial: TrialView, layers: Mapping[Any, Any]) -> dict[str, Callable[[], Figure]]:
    """Return the features of the first of some layers, if they are images."""
    kernel = np.asarray(layers[min(layers)]["kernel"]) if layers else np.zeros(0)
    shape = trial.experiment.input_shape
    if kernel.ndim == 2 and len(shape) == 3:
        kernel = kernel[: math.prod(shape)].reshape(*shape, -1)
    if kernel.ndim != 4:
        return {}
    return {"first_layer": lambda: filters(np.moveaxis(kernel, -1, 0))}


def _beside(clean: np.ndarray, seen: np.ndarray, restored: np.ndarray) -> Figure:
    """Draw the clean input, the corrupted input if there is one, and the output."""
    corrupted = {} if np.array_equal(clean, seen) else {"clean": clean}
    return rows(corrupted | {"input": seen, "reconstruction": restored})


# ---------------------------------------------------------------------- from arrays to figures


def rows(groups: Mapping[str, np.ndarray]) -> Figure:
    """Draw groups of images one above the other, the same example in each column.

    Args:
      groups: images `[n, H, W, C]` in 0..1 by their name.
    """
    count = max(len(images) for images in groups.values())
    figure = new_figure(0.75 * count + 1.3, 0.8 * len(groups) + 0.2)
    axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for ax, (name, images) in zip(axes, groups.items(), strict=True):
        _picture(ax, mosaic(images, count))
        ax.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=9)
    return figure


def grid(images: np.ndarray, title: str, columns: int | None = None) -> Figure:
    """Draw images `[n, H, W, C]` in 0..1 row by row, in a square unless `columns` is given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    lines = math.ceil(len(images) / columns)
    figure, ax = one_panel(max(0.6 * columns + 0.2, 2.6), 0.6 * lines + 0.5, title)
    ax.set_anchor("W")  # below the title
    _picture(ax, mosaic(images, columns))
    return figure


def filters(kernels: np.ndarray) -> Figure:
    """Draw what units look for `[units, H, W, C]`, at most a hundred, each in its own range."""
    kernels = kernels[:100]
    low, high = (f(kernels, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return grid((kernels - low) / np.maximum(high - low, 1e-12), "features of the first layer")


def latent_map(
    codes: np.ndarray, labels: np.ndarray, names: Sequence[str], what: str = "latents"
) -> Figure:
    """Draw codes `[n, d]` by their latents or principal components, marked by class `[n]`."""
    if codes.shape[1] > 2:
        points, parts = principal_components(codes)
        title = f"first two principal components of the {what}"
        axes = [f"component {i + 1} ({part:.0%} of the variance)" for i, part in enumerate(parts)]
    else:
        points, title = np.pad(codes, ((0, 0), (0, 2 - codes.shape[1]))), what
        axes = [f"{i + 1}" if i < codes.shape[1] else "" for i in range(2)]
    return map_of(points, labels, names, title, axes)


def map_of(
    points: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    title: str,
    axes: Sequence[str] | None,
) -> Figure:
    """Draw points `[n, 2]` with a mark for each class `[n]`; axes without names mean nothing."""
    figure, ax = one_panel(6.4, 5.2, title)
    ax.set_aspect("equal", adjustable="datalim")
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    ax.spines[:].set_color(FAINT)
    if axes is None:
        ax.set(xticks=[], yticks=[])
    else:
        ax.set(xlabel=axes[0], ylabel=axes[1])
    dots = functools.partial(ax.scatter, s=12, alpha=0.7, linewidths=0)
    if len(names) > COLOURED:
        dots(*points.T, color=INK)
        return figure
    for index, name in enumerate(names):
        colour = colormaps["tab20" if index >= 10 else "tab10"](index % 20)
        mark = plane.MARKS[index % len(plane.MARKS)]
        dots(*points[labels == index].T, color=colour, marker=mark, label=name)
    ax.legend(frameon=False, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def shares(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw the numbers of samples taken for each class `[classes]`, and a line at their mean."""
    figure, ax = one_panel(max(0.45 * len(names) + 1, 4.0), 3.0, title)
    ax.bar(range(len(counts)), counts, color="#4878a8")
    ax.axhline(counts.sum() / len(counts), color=INK, linewidth=1, linestyle=(0, (3, 3)))
    ax.set_xticks(range(len(counts)), [str(name)[:12] for name in names], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    return figure


def mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Join images `[n, H, W, C]`, `columns` per row, with a border of one pixel between them."""
    images = np.clip(np.nan_to_num(np.asarray(images, np.float32)), 0, 1)
    count, height, width, channels = images.shape
    lines = math.ceil(count / columns)
    canvas = np.ones((lines * columns, height + 1, width + 1, channels), np.float32)
    canvas[:count, :-1, :-1] = images
    canvas = canvas.reshape(lines, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return canvas.reshape(lines * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def _picture(ax: Any, image: np.ndarray) -> None:
    if image.shape[-1] not in (3, 4):  # a kernel may have many channels: draw their mean
        image = image.mean(axis=-1)
    ax.imshow(image, **PICTURE)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
