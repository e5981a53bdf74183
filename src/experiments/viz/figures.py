"""Pictures of a run, as pure functions from arrays to figures.

They draw on a `Figure` of their own and never through pyplot, so there is no window, no global
state and nothing to close. Import this module where a figure is wanted: matplotlib takes a while.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

INK, FAINT, GRID = "#24292f", "#6e7781", "#e6e8eb"
COLOURS = {"train": "#4878a8", "val": "#d9822b", "test": "#6a51a3"}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "color": INK, "fontweight": "bold"}
RIGHT, WRONG = "#1a7f37", "#c4232b"

SMOOTH_FROM = 100
"""Points from which a training curve is drawn smoothed over its faint raw values."""

LOG_FROM = 20.0
"""Ratio of largest to smallest value from which an axis is logarithmic."""

CELLS = 12
"""Most classes whose confusions are written as numbers."""

LARGE_IS_GOOD = ("accuracy", "solved", "elbo")
"""Metrics whose largest value is the best; of others it is the smallest."""

SHOWN = 16
"""Most examples in a grid of predictions."""

CELL, SIDE = (1.7, 2.0), 1.6
"""Inches that an example takes in it, and those of the longer side of its image."""

Points = tuple[np.ndarray, np.ndarray]


def learning_curves(
    history: Sequence[dict], metrics: Sequence[str] = ("loss", "accuracy")
) -> Figure:
    """Some metrics and the learning rate over the steps of a run; the best validation is marked.

    Args:
      history: the lines of `metrics.jsonl`, each a dict with `step` and any of `train/loss`,
        `val/loss`, `test/loss`, the same for other metrics, and `learning_rate`.
      metrics: a panel each; those without data are left out.
    """
    panels = [m for m in metrics if any(_series(history, f"{s}/{m}") for s in COLOURS)]
    rates = _series(history, "learning_rate")
    count = max(len(panels) + bool(rates), 1)
    figure = _figure(4.4 * count, 3.4, layout=None)
    axes = _panels(figure, count)
    for ax in axes:
        _quiet(ax)
        ax.set_xlabel("step")
    for ax, metric in zip(axes, panels, strict=False):
        _metric_panel(ax, history, metric)
    if rates:
        axes[-1].plot(*rates, color=INK, linewidth=1.4)
        axes[-1].set_title("learning rate", **TITLE)
        _scale(axes[-1], rates[1])
    if not panels and not rates:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "no metrics", ha="center", color=FAINT, transform=axes[0].transAxes)
    return figure


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Which classes are taken for which.

    Colour is the share of a true class (a row). Up to 12 classes have their counts written in;
    beyond that the commonest confusions are listed at the side.

    Args:
      counts: `[C, C]`, examples of true class (row) predicted as class (column).
      class_names: `C` names.
    """
    counts = np.asarray(counts)
    classes, total = len(counts), counts.sum()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    small = classes <= CELLS
    if small:
        side = max(0.52 * classes + 1.2, 3.6)
        figure = _figure(side, side)
        ax = figure.subplots()
    else:
        figure = _figure(9.2, 5.6)
        ax, text = figure.subplots(1, 2, width_ratios=(2.1, 1))
        _worst_confusions(text, counts, class_names)
    # The square root lets the few errors of a good classifier show.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    ax.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    if small:
        for row, column in np.ndindex(classes, classes):
            if counts[row, column]:
                dark = shares[row, column] > 0.35
                ax.text(
                    column,
                    row,
                    f"{counts[row, column]:g}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else INK,
                    in_layout=False,  # inside of the matrix, which is measured anyway
                )
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
    ax.set_title(f"{share} correct ({right:,g} of {total:,g})", **TITLE)
    return figure


def sample_predictions(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """The first examples with what was predicted and how surely; errors name the true class.

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
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    # One set of axes for all, in inches: one for each, and their layout, take five times as long.
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    examples = zip(images[:count], labels, probabilities, strict=False)
    for at, (image, label, probability) in enumerate(examples):
        middle = CELL[0] * (at % columns + 0.5)
        bottom = CELL[1] * (at // columns + 1) - 0.05
        predicted = int(np.argmax(np.nan_to_num(probability, nan=-1.0)))
        is_right = predicted == label
        title = f"{_short(class_names[predicted])}  {_percent(probability[predicted])}"
        if not is_right:
            title += f"\ntrue: {_short(class_names[int(label)])}"
        picture = np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1)
        high, wide = SIDE / max(picture.shape[:2]) * np.array(picture.shape[:2])
        if picture.shape[-1] == 1:
            picture = picture[..., 0]
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom - high)
        shown: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        ax.imshow(picture, extent=extent, aspect="auto", **shown)
        colour = RIGHT if is_right else WRONG
        ax.text(middle, bottom - high - 0.04, title, color=colour, fontsize=8.5, ha="center")
    return figure


def _metric_panel(ax: Axes, history: Sequence[dict], metric: str) -> None:
    drawn = []
    for split, colour in COLOURS.items():
        if not (points := _series(history, f"{split}/{metric}")):
            continue
        drawn.append(points[1])
        if split == "train":
            _training_curve(ax, points, colour)
        else:
            _evaluations(
                ax, points, colour, split, best=np.argmax if metric in LARGE_IS_GOOD else np.argmin
            )
    ax.set_title(metric, **TITLE)
    values = np.concatenate(drawn)
    if metric == "loss":
        _scale(ax, values)
    _mark_divergence(ax, history, f"train/{metric}")
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)


def _training_curve(ax: Axes, points: Points, colour: str) -> None:
    steps, values = points
    if len(steps) < SMOOTH_FROM:
        marker = "o" if len(steps) == 1 else None
        ax.plot(steps, values, color=colour, linewidth=1.4, marker=marker, ms=4, label="train")
        return
    ax.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    ax.plot(steps, _smooth(values), color=colour, linewidth=1.4, label="train (smoothed)")


def _evaluations(ax: Axes, points: Points, colour: str, split: str, best) -> None:
    steps, values = points
    if split == "test":
        label = f"test {_number(values[-1])}"
        ax.plot(steps, values, color=colour, linestyle="", marker="D", ms=5, label=label)
        return
    marker = "o" if len(steps) <= 30 else None
    ax.plot(steps, values, color=colour, linewidth=1.4, marker=marker, ms=3, label=split)
    at = best(values)
    label = f"best {_number(values[at])} at step {steps[at]:g}"
    ring: dict[str, Any] = {"mfc": "white", "mec": colour, "mew": 1.6, "ms": 7, "zorder": 4}
    ax.plot(steps[at], values[at], marker="o", linestyle="", label=label, **ring)


def _mark_divergence(ax: Axes, history: Sequence[dict], key: str) -> None:
    bad = [e["step"] for e in history if key in e and not math.isfinite(float(e[key]))]
    if bad:
        label = f"not finite from step {bad[0]:g}"
        ax.axvline(bad[0], color=WRONG, linewidth=1.2, linestyle=(0, (2, 2)), label=label)


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
    style: dict[str, Any] = {
        "va": "top",
        "family": "monospace",
        "fontsize": 8,
        "linespacing": 1.6,
        "color": INK,
    }
    ax.text(0, 0.98, "\n".join(lines) or "none", transform=ax.transAxes, **style)


def _series(history: Sequence[dict], key: str) -> Points | tuple[()]:
    """The steps and the finite values of a metric; empty if there are none."""
    points = [(e["step"], float(e[key])) for e in history if key in e]
    points = [p for p in points if math.isfinite(p[1])]
    if not points:
        return ()
    steps, values = np.array(points).T
    return steps, values


def _smooth(values: np.ndarray) -> np.ndarray:
    """An exponential moving average over about a fiftieth of the curve, without start-up bias."""
    decay = 1 - 50 / len(values) if len(values) > 100 else 0.5
    average, weight, smooth = 0.0, 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        smooth[i] = average / weight
    return smooth


def _scale(ax: Axes, values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if low > 0 and high / low > LOG_FROM:
        ax.set_yscale("log")
        digits = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
        ax.yaxis.set_major_locator(LogLocator(subs=digits))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    return Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")


def _panels(figure: Figure, count: int) -> list[Axes]:
    """Axes side by side with room for numbers, which to measure would take as long as to draw."""
    width, height = figure.get_size_inches()
    left, right, bottom, top = 0.62, 0.12, 0.5, 0.47  # inches
    each = (width - right) / count - left
    sides = {"left": left / width, "right": 1 - right / width, "wspace": left / each}
    grid = {**sides, "bottom": bottom / height, "top": 1 - top / height}
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw=grid)[0])


def _quiet(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    ax.xaxis.label.set(color=INK, fontsize=9)
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def _short(name: object, most: int = 16) -> str:
    text = str(name)
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "?"


def _number(value: float) -> str:
    return f"{value:.4g}"
