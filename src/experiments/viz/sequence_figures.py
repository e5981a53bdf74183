"""Pictures of sequences, as pure functions from arrays to figures; see `insight.figures`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.viz.figures import (
    COLOURS,
    FAINT,
    GRID,
    INK,
    RIGHT,
    TITLE,
    WRONG,
    _figure,
    _quiet,
)

CHARACTER = 0.066  # inches that a character of the fixed-width font takes at 8 points
LINE = 0.155  # and a line
WIDTH = 64  # characters of a line of text
WAVES = 9  # most forecasts of one figure
ROWS = 8  # most sequences of tokens


def written_text(texts: Sequence[tuple[str, str]]) -> Figure:
    """What a language model wrote: a column for each (title, text)."""
    columns = [(title, _wrapped(text)) for title, text in texts]
    tallest = max(len(lines) for _, lines in columns)
    figure = _figure(len(columns) * (WIDTH * CHARACTER + 0.3), LINE * tallest + 0.6)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (title, lines) in zip(axes, columns, strict=True):
        ax.set_axis_off()
        ax.set_title(title, **TITLE)
        ax.text(
            0,
            1,
            "\n".join(_plain(line) for line in lines),
            va="top",
            family="monospace",
            fontsize=8,
            color=INK,
            linespacing=1.3,
            transform=ax.transAxes,
        )
    return figure


def surprise(text: str, nats: np.ndarray) -> Figure:
    """A text in which the colour behind each character says how little it was expected.

    Args:
      text: the characters.
      nats: [len(text)], −log of the probability that each was given.
    """
    lines: list[list[tuple[str, float]]] = [[]]
    for character, value in zip(text, nats, strict=True):
        if character != "\n":
            lines[-1].append((character, float(value)))
        if character == "\n" or len(lines[-1]) == WIDTH:
            lines.append([])
    shades = np.full((len(lines), WIDTH), np.nan)
    for row, line in enumerate(lines):
        shades[row, : len(line)] = [value for _, value in line]
    figure = _figure(WIDTH * CHARACTER * 1.35 + 1.0, LINE * 1.2 * len(lines) + 0.6)
    ax = figure.subplots()
    picture = ax.imshow(shades, cmap="Oranges", vmin=0, vmax=5, aspect="auto")
    for row, line in enumerate(lines):
        for column, (character, value) in enumerate(line):
            colour = "white" if value > 3.5 else INK
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "family": "monospace",
                "fontsize": 8,
            }
            ax.text(column, row, _plain(character), color=colour, **style)
    ax.set_axis_off()
    ax.set_title(f"{np.mean(nats):.3f} nats a character", **TITLE)
    bar = figure.colorbar(picture, ax=ax, shrink=0.6, pad=0.01)
    bar.set_label("nats", color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=FAINT, labelcolor=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def forecasts(read: np.ndarray, targets: np.ndarray, outputs: np.ndarray) -> Figure:
    """What was read, how it went on, and how it was forecast, one panel an example.

    Args:
      read: [n, T] values before; T may be 0.
      targets, outputs: [n, horizon].
    """
    axes, figure = _panels(min(len(read), WAVES))
    before = np.arange(-read.shape[1], 0)
    after = np.arange(targets.shape[1])
    mark = "o" if len(after) == 1 else None
    for ax, past, target, output in zip(axes, read, targets, outputs, strict=False):
        if len(before):
            ax.plot(before, past, color=FAINT, linewidth=1.0, label="read")
        ax.plot(after, target, color=INK, linewidth=1.4, marker=mark, ms=4, label="true")
        forecast: dict[str, Any] = {
            "color": COLOURS["val"],
            "linewidth": 1.4,
            "marker": mark,
            "ms": 4,
        }
        ax.plot(after, output, label="forecast", **forecast)
        ax.set_xlabel("step")
    axes[0].legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def against_target(targets: np.ndarray, outputs: np.ndarray, tolerance: float | None) -> Figure:
    """Outputs over targets, both [n]; between the dashed lines the error is within tolerance."""
    figure = _figure(3.8, 3.6)
    ax = figure.subplots()
    _quiet(ax)
    ends = np.array([targets.min(), targets.max()])
    ax.plot(ends, ends, color=FAINT, linewidth=1.0)
    if tolerance is not None:
        for side in (-tolerance, tolerance):
            ax.plot(ends, ends + side, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.plot(targets, outputs, ".", color=COLOURS["val"], ms=4)
    ax.set_xlabel("target")
    ax.set_ylabel("output", color=INK, fontsize=9)
    ax.set_title(f"mean squared error {np.mean((outputs - targets) ** 2):.2g}", **TITLE)
    return figure


def labelled(
    tokens: np.ndarray, targets: np.ndarray, predicted: np.ndarray, counts: np.ndarray
) -> Figure:
    """Sequences of tokens with the classes that were wanted and predicted; errors are red.

    Args:
      tokens: int [n, T], what was read.
      targets, predicted: int [n, steps].
      counts: bool [n, steps], which steps matter.
    """
    n = min(len(tokens), ROWS)
    steps = max(tokens.shape[1], targets.shape[1])
    figure = _figure(min(0.2 * steps + 1.2, 16), 0.75 * n + 0.3)
    axes = figure.subplots(n, 1, squeeze=False)[:, 0]
    for ax, read, target, output, counted in zip(
        axes, tokens, targets, predicted, counts, strict=False
    ):
        ax.set_xlim(-0.5, steps - 0.5)
        ax.set_ylim(2.5, -0.5)
        ax.set_yticks(range(3), ["read", "wanted", "predicted"], fontsize=7)
        ax.set_xticks([])
        ax.tick_params(length=0, labelcolor=INK)
        ax.spines[:].set_color(GRID)
        for row, (values, colours) in enumerate(
            (
                (read, [INK] * len(read)),
                (target, [INK if c else GRID for c in counted]),
                (output, _verdict(target, output, counted)),
            )
        ):
            for column, (value, colour) in enumerate(zip(values, colours, strict=True)):
                style = {"ha": "center", "va": "center", "fontsize": 7, "family": "monospace"}
                ax.text(column, row, str(value), color=colour, **style)
    return figure


def _verdict(target: np.ndarray, output: np.ndarray, counted: np.ndarray) -> list[str]:
    return [
        (RIGHT if t == o else WRONG) if c else GRID
        for t, o, c in zip(target, output, counted, strict=True)
    ]


def _panels(count: int) -> tuple[list[Axes], Figure]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = _figure(3.4 * columns, 2.1 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[:count]:
        _quiet(ax)
    for ax in axes[count:]:
        ax.set_axis_off()
    return axes[:count], figure


def _wrapped(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(line, WIDTH) or [""]
    return lines


def _plain(text: str) -> str:
    """Text without what matplotlib takes for formulas, and without control characters."""
    return "".join(c if c.isprintable() else "·" for c in text).replace("$", r"\$")
