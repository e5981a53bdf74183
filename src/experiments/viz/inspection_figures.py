"""Figures of what goes on inside of a trained network, for `mode=inspect`."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from experiments.core.diagnostics.attribution import Attribution
from experiments.viz.figures import (
    COLOURS,
    FAINT,
    INK,
    PICTURE,
    TITLE,
    new_figure,
    one_panel,
    plain,
    plain_axes,
)
from experiments.viz.image_figures import mosaic

PANELS = 24  # most layers with a histogram
BARS = 40  # most layers with bars
ROWS, MAPS = 8, 12  # most layers with feature maps, and maps of each
NORMS = {
    "weight_norm": "norm of the weights",
    "grad_norm": "norm of the gradient",
    "update_norm": "norm of the next update",
}

Numbers = Mapping[str, Mapping[str, float]]  # by layer, by quantity
Histograms = Mapping[str, tuple[np.ndarray, np.ndarray]]  # counts [bins] and edges [bins + 1]


def activations(histograms: Histograms, layers: Numbers) -> Figure:
    """Draw the histogram of the outputs of each layer, in the order that is given."""
    names = _some(list(histograms), PANELS)
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(2.6 * columns, 1.9 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        counts, edges = histograms[name]
        plain_axes(ax)
        ax.stairs(counts / max(counts.sum(), 1), edges, fill=True, color=COLOURS["train"])
        numbers = layers[name]
        said = f"mean {numbers['output_mean']:.2g}, std {numbers['output_std']:.2g}"
        if numbers.get("dead_units"):
            said += f", dead {numbers['dead_units']:.0%}"
        ax.set_title(f"{plain(name)}\n{said}", loc="left", fontsize=8, color=INK)
        ax.set_xlabel("output of the layer", color=INK, fontsize=8)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("share of outputs", color=INK, fontsize=8)
    return figure


def norms(layers: Numbers) -> Figure:
    """Draw the norms of each layer as bars on a logarithmic axis, and the share of dead units."""
    names = _some([name for name in layers if "weight_norm" in layers[name]], BARS)
    figure = new_figure(11.5, 0.2 * len(names) + 1.5)
    panels = figure.subplots(1, len(NORMS) + 1, sharey=True)
    places = np.arange(len(names))
    for ax, quantity in zip(panels, [*NORMS, "dead_units"], strict=True):
        values = np.array([layers[name].get(quantity, np.nan) for name in names], float)
        plain_axes(ax)
        bars = ax.barh(places, values, color=COLOURS["train"], height=0.7)
        texts = ["" if np.isnan(value) else f"{value:.2g}" for value in values]
        ax.bar_label(bars, texts, padding=2, fontsize=7, color=INK)
        ax.set_title(NORMS.get(quantity, "share of dead units"), **TITLE)
        if quantity == "dead_units":
            ax.set_xlim(0, 1.15)
            ax.set_xlabel("of the units of the layer")
        else:
            ax.set_xlabel("Euclidean norm")
            if (positive := values[values > 0]).size:
                ax.set_xscale("log")
                ax.set_xlim(10 ** np.floor(np.log10(positive.min())), 5 * positive.max())
                ax.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_yticks(places, [plain(name) for name in names])
    panels[0].invert_yaxis()
    return figure


def feature_maps(image: np.ndarray, maps: Mapping[str, np.ndarray]) -> Figure:
    """Draw a picture and the outputs of convolutions for it, a row for each layer.

    Args:
      image: [H, W, C] as the model sees it.
      maps: [h, w, channels] by the name of the layer; each map is drawn in its own range.
    """
    names = _some(list(maps), ROWS)
    figure = new_figure(0.85 * MAPS + 1.6, 0.95 * (len(names) + 1) + 0.3)
    axes = figure.subplots(len(names) + 1, 1)
    _row(axes[0], _scaled(image[None]), "input", MAPS)
    for ax, name in zip(axes[1:], names, strict=True):
        height, width, channels = maps[name].shape
        shown = _scaled(np.moveaxis(maps[name][..., :MAPS], -1, 0)[..., None])
        size = f"{height}x{width}x{channels}"
        _row(ax, shown, f"{plain(name)}\n{size}", MAPS)
    most = max(maps[name].shape[-1] for name in names)
    of = f", the first {MAPS} of each" if most > MAPS else ""
    figure.suptitle(f"outputs of the convolutions{of}", x=0.01, ha="left", **_title())
    return figure


def attribution(found: Attribution, titles: Sequence[str]) -> Figure:
    """Draw pictures above their saliency and, over themselves, their class activation maps.

    Args:
      titles: a text for each, without formulas.
    """
    images, class_map = found.inputs, found.class_map
    names = ["input", "saliency\n|d score / d pixel|"]
    if class_map is not None:
        names.append(f"Grad-CAM\nat {plain(str(found.layer))}")
    count = len(images)
    figure = new_figure(1.5 * count + 1.6, 1.55 * len(names) + 0.6)
    axes = figure.subplots(len(names), count, squeeze=False)
    shown = _scaled(images)
    for column, (image, slopes, title) in enumerate(
        zip(shown, found.saliency, titles, strict=True)
    ):
        pictures = [image, slopes / max(slopes.max(), 1e-30)]
        for ax, picture in zip(axes[:, column], pictures, strict=False):
            ax.imshow(_drawable(picture), **PICTURE)
        if class_map is not None:
            grey = image.mean(axis=-1)
            axes[2, column].imshow(grey, **PICTURE)
            heat = axes[2, column].imshow(
                class_map[column], cmap="inferno", vmin=0, vmax=1, alpha=0.65
            )
        axes[0, column].set_title(title, fontsize=8, color=INK)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    if class_map is not None:
        bar = figure.colorbar(heat, ax=list(axes[2]), fraction=0.03, pad=0.01)
        bar.set_label("share of the highest", color=INK, fontsize=8)
        bar.ax.tick_params(labelsize=7, labelcolor=INK, color=FAINT)
    return figure


def through_time(lengths: np.ndarray) -> Figure:
    """Draw the norm of the gradient by the input of each step [steps]."""
    figure, ax = one_panel(5.8, 3.4, "gradient through time")
    plain_axes(ax)
    marker = "o" if len(lengths) <= 60 else None
    steps = np.arange(1, len(lengths) + 1)
    ax.plot(steps, lengths, color=COLOURS["train"], marker=marker, ms=3, linewidth=1.4)
    if (lengths > 0).all():
        ax.set_yscale("log")
        ax.tick_params(which="both", labelsize=8, labelcolor=INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step of the sequence")
    ax.set_ylabel("mean of ‖d loss / d input‖", color=INK, fontsize=9)
    return figure


def _some(names: list[str], most: int) -> list[str]:
    """Return so many names at most, evenly spaced."""
    chosen = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [names[i] for i in chosen]


def _scaled(images: np.ndarray) -> np.ndarray:
    """Return images [n, H, W, C], each in its own range, in 0..1."""
    images = np.nan_to_num(np.asarray(images, np.float32))
    low, high = (f(images, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return (images - low) / np.maximum(high - low, 1e-12)


def _drawable(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W] or [H, W, C] as one that can be drawn: of many channels the mean."""
    return image if image.ndim == 2 or image.shape[-1] in (3, 4) else image.mean(axis=-1)


def _row(ax: Axes, images: np.ndarray, name: str, columns: int) -> None:
    ax.imshow(_drawable(mosaic(images, columns)), **PICTURE)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=8)


def _title() -> dict:
    return {key: value for key, value in TITLE.items() if key != "loc"}
