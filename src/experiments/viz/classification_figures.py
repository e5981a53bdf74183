"""Figures of classifiers: confusion matrix and sample predictions."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from experiments.viz.figures import INK, PICTURE, RIGHT, TITLE, WRONG, curves_of, new_figure, plain
from experiments.viz.plane_figures import decision_boundary, in_plane
from experiments.viz.trial_view import Drawings, Predictions, TrialView, Weights

CELLS = 12  # most classes for which confusions are written as numbers
SHOWN = 16  # most examples in a grid of predictions
CELL, SIDE = (1.7, 2.0), 1.6  # inches of an example in it, and of the longer side of its image


def classification(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return the figures of a classifier."""
    counts = np.zeros((trial.classes, trial.classes), int)
    np.add.at(counts, (predictions.labels, predictions.predicted), 1)
    figures = curves_of(trial, "loss", "accuracy")
    figures["confusion_matrix"] = lambda: confusion_matrix(counts, trial.labels, trial.split)
    if in_plane(trial):
        figures["decision_boundary"] = lambda: decision_boundary(trial, weights)
    if "image" in predictions.first:
        figures["sample_predictions"] = lambda: sample_predictions(
            predictions.first["image"] / 255,
            predictions.first["label"],
            predictions.outputs,
            trial.labels,
        )
    return Drawings(figures)


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], split: str) -> Figure:
    """Draw a confusion matrix, coloured by the share of a true class (a row).

    Up to 12 classes have their counts written in; of more the commonest confusions are listed.

    Args:
      counts: `[C, C]`, examples of true class (row) predicted as class (column).
      class_names: `C` names.
      split: the one that the examples are of.
    """
    classes, total = len(counts), counts.sum()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    small = classes <= CELLS
    if small:
        length = max(0.52 * classes + 1.2, 3.6)
        figure = new_figure(length, length)
        ax = figure.subplots()
    else:
        figure = new_figure(9.2, 5.6)
        ax, side = figure.subplots(1, 2, width_ratios=(2.1, 1))
        _worst_confusions(side, counts, class_names)
    # The square root lets the few errors of a good classifier show.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    ax.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    if small:
        for row, column in np.ndindex(classes, classes):
            if counts[row, column]:
                dark = shares[row, column] > 0.35
                text = ax.text(column, row, f"{counts[row, column]:g}", ha="center", va="center")
                text.set(fontsize=8, color="white" if dark else INK)
                text.set_in_layout(False)  # inside of the matrix, which is measured anyway
    if classes <= 50:
        names = [_short(name) for name in class_names]
        size = 8 if small else 6
        upright = max(map(len, names), default=0) <= 2
        ax.set_xticks(range(classes), names, rotation=0 if upright else 90, fontsize=size)
        ax.set_yticks(range(classes), names, fontsize=size)
    ax.tick_params(length=0, colors=INK)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("predicted", color=INK)
    ax.set_ylabel("true", color=INK)
    right = np.trace(counts)
    share = f"{right / total:.2%}" if total else "none"
    ax.set_title(f"{split}: {share} correct ({right:,g} of {total:,g})", **TITLE)
    return figure


def sample_predictions(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Draw the first examples with their predicted class; errors name the true class.

    Args:
      images: `[n, H, W, C]` in 0..1, one channel or three.
      labels: `[n]` true classes.
      probabilities: `[n, classes]`.
      class_names: a name for each class.
    """
    count = min(len(images), SHOWN)
    columns = math.ceil(math.sqrt(count)) or 1
    rows = math.ceil(count / columns) or 1
    width, height = CELL[0] * columns, CELL[1] * rows
    figure = new_figure(width, height, layout=None)
    # One set of axes for all examples, in inches: axes for each, and their layout, take far longer.
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    examples = zip(images[:count], labels, probabilities, strict=False)
    for at, (image, label, probability) in enumerate(examples):
        middle = CELL[0] * (at % columns + 0.5)
        bottom = CELL[1] * (at // columns + 1) - 0.05
        predicted = int(np.argmax(np.nan_to_num(probability, nan=-1.0)))
        is_right, share = predicted == label, probability[predicted]
        title = f"{_short(class_names[predicted])}  {f'{share:.0%}' if share == share else '?'}"
        if not is_right:
            title += f"\ntrue: {_short(class_names[int(label)])}"
        picture = np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1)
        high, wide = SIDE / max(picture.shape[:2]) * np.array(picture.shape[:2])
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom - high)
        ax.imshow(picture, extent=extent, aspect="auto", **PICTURE)
        colour = RIGHT if is_right else WRONG
        ax.text(middle, bottom - high - 0.04, title, color=colour, fontsize=8.5, ha="center")
    return figure


def _worst_confusions(ax: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    errors = counts - np.diag(np.diag(counts))
    order = np.argsort(-errors, axis=None, kind="stable")[:15]
    rows, columns = np.unravel_index(order, errors.shape)
    ax.set_axis_off()
    ax.set_title("commonest confusions", **TITLE)
    width = len(f"{errors.max():,g}")
    lines = [
        f"{errors[r, c]:>{width},g}  {_short(class_names[r])} → {_short(class_names[c])}"
        for r, c in zip(rows, columns, strict=True)
        if errors[r, c]
    ]
    text = ax.text(0, 0.98, "\n".join(lines) or "none", transform=ax.transAxes)
    text.set(va="top", color=INK, family="monospace", fontsize=8, linespacing=1.6)


def _short(name: object, most: int = 16) -> str:
    text = str(name)
    head = most // 2
    return plain(text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}")
