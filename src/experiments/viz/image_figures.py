"""Pictures of what models that generate images do: mosaics, maps of latents, learned features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.viz.figures import FAINT, INK, TITLE

CLASSES = 20
"""Most classes that are told apart by colour."""


def rows(groups: Mapping[str, np.ndarray]) -> Figure:
    """Groups of images one above the other, the same example in each column.

    Args:
      groups: images `[n, H, W, C]` in 0..1 by what they are.
    """
    count = max(len(images) for images in groups.values())
    figure = _figure(0.75 * count + 1.3, 0.8 * len(groups) + 0.2)
    axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for ax, (name, images) in zip(axes, groups.items(), strict=True):
        _picture(ax, mosaic(images, count))
        ax.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=9)
    return figure


def grid(images: np.ndarray, title: str, columns: int | None = None) -> Figure:
    """Images `[n, H, W, C]` in 0..1 row by row, in a square unless `columns` says otherwise."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    lines = math.ceil(len(images) / columns)
    figure = _figure(0.6 * columns + 0.2, 0.6 * lines + 0.5)
    ax = figure.subplots()
    _picture(ax, mosaic(images, columns))
    ax.set_title(title, **TITLE)
    return figure


def latent_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str], what: str) -> Figure:
    """Where examples lie in two dimensions: points `[n, 2]`, coloured by their class `[n]`."""
    figure = _figure(6.0, 5.2)
    ax = figure.subplots()
    ax.set_title(what, **TITLE)
    ax.set_aspect("equal", adjustable="datalim")
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    ax.spines[:].set_color(FAINT)
    dots: dict[str, Any] = {"s": 6, "alpha": 0.6, "linewidths": 0}
    if len(names) > CLASSES:
        ax.scatter(*points.T, color=INK, **dots)
        return figure
    for index, name in enumerate(names):
        ax.scatter(*points[labels == index].T, color=_colour(index), label=name, **dots)
    ax.legend(frameon=False, fontsize=8, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def features(kernels: np.ndarray, title: str) -> Figure:
    """What the units of a layer look for: kernels `[n, H, W, C]`, each scaled to its own range."""
    low = kernels.min(axis=(1, 2, 3), keepdims=True)
    high = kernels.max(axis=(1, 2, 3), keepdims=True)
    return grid((kernels - low) / np.maximum(high - low, 1e-12), title)


def shares(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """How many of the samples `[classes]` are taken for each class; a line where all are equal."""
    figure = _figure(max(0.45 * len(names) + 1, 4.0), 3.0)
    ax = figure.subplots()
    ax.bar(range(len(counts)), counts, color="#4878a8")
    ax.axhline(counts.sum() / len(counts), color=INK, linewidth=1, linestyle=(0, (3, 3)))
    ax.set_xticks(range(len(counts)), [str(name)[:12] for name in names], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    ax.set_title(title, **TITLE)
    return figure


def mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Images `[n, H, W, C]` as one of `columns` a row, with a border of a pixel between them."""
    images = np.clip(np.nan_to_num(np.asarray(images, np.float32)), 0, 1)
    count, height, width, channels = images.shape
    lines = math.ceil(count / columns)
    canvas = np.ones((lines * columns, height + 1, width + 1, channels), np.float32)
    canvas[:count, :-1, :-1] = images
    canvas = canvas.reshape(lines, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return canvas.reshape(lines * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def _picture(ax: Any, image: np.ndarray) -> None:
    if image.shape[-1] not in (3, 4):  # of many channels, as a kernel has, their mean
        image = image.mean(axis=-1)
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _colour(index: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20" if index >= 10 else "tab10"](index % 20)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
