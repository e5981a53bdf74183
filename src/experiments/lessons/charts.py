"""Panels, bars and curves of lessons, distinguished by marks and dashes as well as by colours."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.viz.figures import INK, LEGEND, TITLE, new_figure, plain_axes

COLOURS = ("#4878a8", "#d9822b", "#6a51a3", "#1a7f37", "#c4232b", "#6e7781")
MARKS = ("o", "s", "^", "D", "v", "x")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)), (0, (8, 2)), "-")


def style(index: int, *, marks: bool = True) -> dict[str, Any]:
    """Return how to draw the curve of a number, from 0 on."""
    index %= len(COLOURS)
    look = {"color": COLOURS[index], "linestyle": DASHES[index], "linewidth": 1.5}
    return look | ({"marker": MARKS[index], "ms": 4} if marks else {})


def panels(
    titles: Sequence[str], columns: int | None = None, width: float = 3.6, height: float = 3.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each title, and their axes; sizes in inches of a panel."""
    columns = columns or len(titles)
    rows = -(-len(titles) // columns)
    figure = new_figure(width * columns, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, title in zip(axes, titles, strict=False):
        plain_axes(ax)
        ax.yaxis.label.set(color=INK, fontsize=9)
        ax.set_title(title, **TITLE)
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    return figure, axes[: len(titles)]


def same_decades(axes: Sequence[Axes]) -> None:
    """Give panels the same logarithmic axis of y, on which decades alone are named."""
    for ax in axes:
        ax.set_yscale("log")
    low, high = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(low), max(high))
        ax.yaxis.set_minor_formatter(NullFormatter())


def curves(ax: Axes, x: Any, groups: Mapping[str, Any], *, marks: bool = True) -> None:
    """Draw the mean of each group of runs [runs, points] over `x`, and a band of ± one deviation.

    Args:
      groups: values by name; a group of one run has no band, and no band leaves the range of its
        runs, so that there is no accuracy above 1.
    """
    for index, (name, values) in enumerate(groups.items()):
        values = np.atleast_2d(np.asarray(values, float))
        look = style(index, marks=marks)
        mean = values.mean(axis=0)
        ax.plot(x, mean, label=name, **look)
        if len(values) > 1:
            deviation = values.std(axis=0, ddof=1)
            limits = values.min(axis=0), values.max(axis=0)
            ends = (np.clip(end, *limits) for end in (mean - deviation, mean + deviation))
            ax.fill_between(x, *ends, color=look["color"], alpha=0.15)
    ax.legend(**LEGEND)


def bars(ax: Axes, groups: Mapping[str, Sequence[float] | np.ndarray]) -> None:
    """Draw the mean of each group as a bar, with ± one deviation and every run as a dot."""
    for index, values in enumerate(map(np.asarray, groups.values())):
        error = values.std(ddof=1) if len(values) > 1 else 0.0
        ax.bar(
            index, values.mean(), yerr=error, color="#b8c9dc", edgecolor=INK, capsize=4, width=0.6
        )
        ax.plot(np.full(len(values), index), values, "o", color=INK, ms=3, alpha=0.6)
    ax.set_xticks(range(len(groups)), [textwrap.fill(name, 14) for name in groups], fontsize=8)
