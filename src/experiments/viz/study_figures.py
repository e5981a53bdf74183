"""Pictures of a study, as pure functions from its data to figures; see `figures` for the style."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Line

from experiments.viz.figures import FAINT, GRID, INK, TITLE
from experiments.viz.study_data import Axis, StudyData

RANKS = colormaps["viridis_r"]  # the best trial is the darkest
LABELLED = 8  # most choices whose names are written at an axis


def all_figures(data: StudyData) -> dict[str, Figure]:
    """Every figure that a study has data for, by file name."""
    figures = {"history": history(data)}
    if data.ranked:
        figures |= {"learning_curves": learning_curves(data), "slices": slices(data)}
        if len(data.varied) > 1:
            figures["parallel_coordinates"] = parallel_coordinates(data)
    if data.importance:
        figures["importance"] = importance(data)
    return figures


def colours(count: int) -> list[Any]:
    """A colour for each rank, best first."""
    return [RANKS(1 - 0.95 * i / max(count - 1, 1)) for i in range(count)]


def history(data: StudyData) -> Figure:
    """The value of each trial in their order, and the best so far as a line."""
    figure, ax = _figure(6.0, 3.4)
    for row in data.rows:
        if row.value is not None:
            ax.plot(row.number, row.value, "o", color=FAINT, markersize=4)
        elif row.state in ("failed", "diverged"):
            ax.axvline(row.number, color="#c4232b", linewidth=0.8, alpha=0.4)
    numbers = [row.number for row in data.rows if row.value is not None]
    ax.step(numbers, data.best_so_far()[1], where="post", color=INK)
    ax.set_title(f"{data.metric} of each trial, and the best so far", **TITLE)
    ax.set_xlabel("trial")
    return figure


def learning_curves(data: StudyData) -> Figure:
    """The metric of every trial by epoch, coloured by rank, the best on top."""
    figure, ax = _figure(6.0, 3.8)
    ranked = data.ranked
    for row, colour in reversed(list(zip(ranked, colours(len(ranked)), strict=True))):
        ax.plot(*row.curve, color=colour, linewidth=1.2)
    best = ranked[0]
    ax.plot(*best.curve, color=INK, linewidth=2, label=f"trial {best.number}")
    ax.legend(frameon=False)
    ax.set_title(f"{data.metric} by epoch; darker is better", **TITLE)
    ax.set_xlabel("epoch")
    return figure


def slices(data: StudyData) -> Figure:
    """The value of each trial against each parameter."""
    axes = data.varied
    figure = Figure(figsize=(3.2 * len(axes), 3.2), layout="constrained")
    shades = colours(len(data.ranked))
    for ax, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        _quiet(ax)
        for row, shade in zip(data.ranked, shades, strict=True):
            if axis.name in row.values:
                ax.plot(axis.position(row.values[axis.name]), row.value, "o", color=shade, ms=5)
        _scale(ax, axis)
        ax.set_xlabel(axis.name)
    figure.axes[0].set_ylabel(data.metric)
    figure.suptitle("value against each parameter", x=0.01, ha="left", fontsize=10, weight="bold")
    return figure


def importance(data: StudyData) -> Figure:
    """The share of each parameter in what set the best trials apart."""
    names = list(data.importance)[::-1]
    figure, ax = _figure(6.0, 0.9 + 0.4 * len(names))
    ax.barh(names, [data.importance[name] for name in names], color="#4878a8")
    ax.set_title("importance (PED-ANOVA)", **TITLE)
    ax.set_xlim(0, 1)
    return figure


def parallel_coordinates(data: StudyData) -> Figure:
    """Each trial as a line through its values; the last axis is the metric."""
    axes = data.varied
    figure, ax = _figure(1.8 * (len(axes) + 1), 3.8)
    ranked = data.ranked
    values = np.array([row.value for row in ranked], float)
    span = float(np.ptp(values)) or 1.0
    for row, colour in reversed(list(zip(ranked, colours(len(ranked)), strict=True))):
        points: list[tuple[float, float]] = [
            (i, unit(axis, data, row.values[axis.name]))
            for i, axis in enumerate(axes)
            if axis.name in row.values
        ]
        points.append((len(axes), (row.value - values.min()) / span))
        ax.add_patch(PathPatch(_smooth(points), fill=False, edgecolor=colour, linewidth=1.1))
    for i, axis in enumerate(axes):
        ax.axvline(i, color=INK, linewidth=0.8)
        _write_ends(ax, i, axis, data)
    ax.axvline(len(axes), color=INK, linewidth=0.8)
    _write(ax, len(axes), 0, f"{values.min():.4g}")
    _write(ax, len(axes), 1, f"{values.max():.4g}")
    ax.set_xticks(range(len(axes) + 1), [*(axis.name for axis in axes), data.metric], fontsize=8)
    ax.set(yticks=[], xlim=(-0.3, len(axes) + 0.5), ylim=(-0.08, 1.08))
    ax.spines[:].set_visible(False)
    ax.set_title("each trial through its values; darker is better", **TITLE)
    return figure


def comparison(studies: Sequence[StudyData]) -> Figure:
    """Studies at the same budget: where each has looked, and its best value after each trial."""
    shared = [axis for axis in studies[0].varied if axis.choices is None][:2]
    panels = len(studies) if len(shared) == 2 else 0
    figure = Figure(figsize=(3.6 * (panels + 1), 3.6), layout="constrained")
    places = figure.subplots(1, panels + 1, squeeze=False)[0]
    for ax, data in zip(places, studies[:panels], strict=False):
        _quiet(ax)
        ranked = data.ranked
        for row, shade in reversed(list(zip(ranked, colours(len(ranked)), strict=True))):
            if all(axis.name in row.values for axis in shared):
                ax.plot(*(row.values[axis.name] for axis in shared), "o", color=shade)
        for axis, scale in zip(shared, (ax.set_xscale, ax.set_yscale), strict=True):
            if axis.log:
                scale("log")
        ax.set(xlabel=shared[0].name, ylabel=shared[1].name)
        ax.set_title(f"{data.method}: {len(ranked)} trials; darker is better", **TITLE)
    for ax in places[1:panels]:  # the same part of the space in each
        ax.sharex(places[0])
        ax.sharey(places[0])
    ax = places[-1]
    _quiet(ax)
    for data, colour in zip(studies, ("#4878a8", "#d9822b", "#1a7f37", "#6a51a3"), strict=False):
        steps, best = data.best_so_far()
        label = f"{data.method}: {best[-1]:.4g}" if best else data.method
        ax.step(steps, best, where="post", color=colour, label=label)
    ax.legend(frameon=False)
    ax.set_xlabel("trials")
    ax.set_title(f"best {studies[0].metric} so far", **TITLE)
    return figure


def unit(axis: Axis, data: StudyData, value: Any) -> float:
    """Where a value stands between the smallest (0) and the largest (1) of its parameter."""
    low, high = _ends(axis, data)
    here = axis.position(value)
    if axis.log:
        low, high, here = np.log10([low, high, here])
    return float((here - low) / ((high - low) or 1.0))


def _ends(axis: Axis, data: StudyData) -> tuple[float, float]:
    if axis.choices is not None:
        return 0.0, float(len(axis.choices) - 1)
    seen = [float(row.values[axis.name]) for row in data.ranked if axis.name in row.values]
    return (min(seen), max(seen)) if seen else (0.0, 1.0)


def _write_ends(ax: Axes, x: int, axis: Axis, data: StudyData) -> None:
    if axis.choices is not None and len(axis.choices) <= LABELLED:
        for choice in axis.choices:
            _write(ax, x, unit(axis, data, choice), str(choice))
        return
    for y, end in enumerate(_ends(axis, data)):
        _write(ax, x, y, f"{end:.2g}")


def _write(ax: Axes, x: float, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    ax.text(x + 0.03, y, text, fontsize=7, color=INK, va="center", bbox=box)


def _smooth(points: list[tuple[float, float]]) -> Line:
    """A line that leaves and enters each axis at a right angle."""
    codes, corners = [Line.MOVETO], [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (x0 + x1) / 2
        corners += [(middle, y0), (middle, y1), (x1, y1)]
        codes += [Line.CURVE4] * 3
    return Line(corners, codes)


def _scale(ax: Axes, axis: Axis) -> None:
    if axis.log:
        ax.set_xscale("log")
    if axis.choices is not None:
        names = [str(choice) for choice in axis.choices]
        shown = range(len(names)) if len(names) <= LABELLED else [0, len(names) - 1]
        ax.set_xticks(list(shown), [names[i] for i in shown], rotation=30, ha="right", fontsize=7)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    _quiet(ax)
    return figure, ax


def _quiet(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, colors=INK)
