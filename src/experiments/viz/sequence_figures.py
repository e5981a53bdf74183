"""Figures of sequences: forecasts, labelled tokens, and the text of language models."""

import functools
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.core.generation import generate
from experiments.viz.figures import (
    COLOURS,
    FAINT,
    GRID,
    INK,
    RIGHT,
    TITLE,
    WRONG,
    curves_of,
    new_figure,
    one_panel,
    plain,
    plain_axes,
)
from experiments.viz.trial_view import Drawings, Predictions, TrialView, Weights

TEMPERATURES = (0.5, 0.8, 1.0)
LENGTH = 600  # characters of a generated text
READ = 900  # characters of the text that is scored
CHARACTER = 0.066  # inches that a character of the fixed-width font takes at 8 points
LINE = 0.155  # inches that a line takes
WIDTH = 64  # characters of a line of text
FORECASTS = 9  # most forecasts of one figure
ROWS = 8  # most sequences of tokens
TOKEN: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 8}


def regression(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return outputs over targets if the target is one number, else forecasts."""
    figures = curves_of(trial, "loss", "absolute_error", "solved")
    batch = trial.experiment.pipeline(predictions.first, None, train=False)
    target = np.asarray(batch["target"])
    if target[0].size == 1:
        unit = {"tolerance": trial.objective.tolerance, **_unit(trial)}
        figures["outputs"] = lambda: against_target(*_all_outputs(trial, weights), **unit)
        return Drawings(figures)
    target = target.reshape(len(target), -1)
    outputs = np.asarray(predictions.outputs).reshape(target.shape)
    read = np.asarray(batch["sequence"])
    # where several features are read, the one that is forecast need not be among them
    past = read[..., 0] if read.shape[2:] == (1,) else np.zeros((len(read), 0))
    column = trial.config["data"].get("column")
    name = f"{column}, standardised" if column else ""
    figures["forecasts"] = lambda: forecasts(past, target, outputs, name)
    return Drawings(figures)


def _unit(trial: TrialView) -> dict[str, Any]:
    """Return the name of a target that is one number, and its `mean` and `std` as it was given."""
    scale = (trial.found or {}).get("target") or {}
    name = trial.config["data"].get("target")
    name = name[0] if isinstance(name, list) else name
    known = {key: float(np.ravel(scale[key])[0]) for key in ("mean", "std") if key in scale}
    return {"name": str(name or "target"), **known}


def labelling(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return learning curves and, where tokens are read, sequences with their predictions."""
    figures = curves_of(trial, "loss", "accuracy", "solved")
    batch = trial.experiment.pipeline(predictions.first, None, train=False)
    if "tokens" in batch:
        target = np.asarray(batch["target"])
        counts = np.asarray(batch.get("weight", np.ones(target.shape))) > 0
        tokens, outputs = np.asarray(batch["tokens"]), np.asarray(predictions.outputs)
        figures["sequences"] = lambda: labelled(tokens, target, outputs, counts)
    return Drawings(figures)


def language(trial: TrialView, weights: Weights, predictions: Predictions) -> Drawings:
    """Return generated text, and the surprise of the characters of a test text."""
    window = predictions.first["text"][0].astype(int)
    following = window[1 : READ + 1]
    nats = -predictions.outputs[0, np.arange(len(following)), following]
    text = "".join(trial.class_names[code] for code in following)
    figures = curves_of(trial, "loss", "bits_per_character")
    figures |= language_during(trial, weights).figures
    return Drawings(figures | {"surprise": lambda: surprise(text, nats)})


def language_during(trial: TrialView, weights: Weights) -> Drawings:
    """Return text that the model generates at several temperatures."""
    write = functools.partial(
        generate,
        trial.experiment,
        trial.hparams,
        weights,
        "".join(trial.class_names),
        length=LENGTH,
        prompt=None,
        seed=trial.config["seed"],
    )

    def texts() -> Figure:
        return written_text([(f"temperature {t}", write(temperature=t)) for t in TEMPERATURES])

    return Drawings({"generated_text": texts})


def _all_outputs(trial: TrialView, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets and outputs [N] of a split, one number per example."""
    pairs = []
    for batch in trial.batches(trial.split):
        stored = {name: array for name, array in batch.items() if name != "mask"}
        target = trial.experiment.pipeline(stored, None, train=False)["target"]
        output = _evaluate(trial.experiment, trial.hparams, weights, batch)
        real = np.asarray(batch["mask"]) > 0
        pairs.append(np.stack([np.ravel(target), np.ravel(output)])[:, real])
    targets, outputs = np.concatenate(pairs, axis=1)
    return targets, outputs


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(experiment: Any, hparams: Any, weights: Weights, batch: Any) -> jax.Array:
    return experiment.eval_step(*weights, batch, hparams)[1]


def written_text(texts: Sequence[tuple[str, str]]) -> Figure:
    """Draw text that a language model generated: a column for each (title, text)."""
    columns = [
        [plain(part) for line in text.split("\n") for part in textwrap.wrap(line, WIDTH) or [""]]
        for _, text in texts
    ]
    height = LINE * max(map(len, columns)) + 0.6
    figure = new_figure(len(columns) * (WIDTH * CHARACTER + 0.3), height)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (title, _), lines in zip(axes, texts, columns, strict=True):
        ax.set_axis_off()
        ax.set_title(title, **TITLE)
        shown = ax.text(0, 1, "\n".join(lines), transform=ax.transAxes)
        shown.set(va="top", color=INK, family="monospace", fontsize=8, linespacing=1.3)
    return figure


def surprise(text: str, nats: np.ndarray) -> Figure:
    """Draw a text with a colour behind each character: the darker, the less it was expected.

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
    title = f"{np.mean(nats):.3f} nats per character"
    width, height = WIDTH * CHARACTER * 1.35 + 1.0, LINE * 1.2 * len(lines) + 0.6
    figure, ax = one_panel(width, height, title)
    shades = np.full((len(lines), WIDTH), np.nan)
    for row, line in enumerate(lines):
        for column, (character, value) in enumerate(line):
            shades[row, column] = value
            colour = "white" if value > 3.5 else INK
            ax.text(column, row, plain(character), color=colour, **TOKEN)
    picture = ax.imshow(shades, cmap="Oranges", vmin=0, vmax=5, aspect="auto")
    ax.set_axis_off()
    bar = figure.colorbar(picture, ax=ax, shrink=0.6, pad=0.01)
    bar.set_label("nats", color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=FAINT, labelcolor=INK)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def forecasts(read: np.ndarray, targets: np.ndarray, outputs: np.ndarray, name: str = "") -> Figure:
    """Draw the past, the true continuation and the forecast, one panel per example.

    Args:
      read: [n, T], the past; T may be 0.
      targets, outputs: [n, horizon].
      name: of what is forecast.
    """
    count = min(len(read), FORECASTS)
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = new_figure(3.4 * columns, 2.1 * lines)
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.set_axis_off()
    before, after = np.arange(-read.shape[1], 0), np.arange(targets.shape[1])
    line: dict[str, Any] = {"linewidth": 1.4, "marker": "o" if len(after) == 1 else None, "ms": 4}
    for ax, past, target, output in zip(axes[:count], read, targets, outputs, strict=False):
        plain_axes(ax)
        if len(before):
            ax.plot(before, past, color=FAINT, linewidth=1.0, label="read")
        ax.plot(after, target, color=INK, label="true", **line)
        ax.plot(after, output, color=COLOURS["val"], label="forecast", **line)
        ax.set_xlabel("step")
    axes[0].legend(frameon=False, fontsize=7, labelcolor=INK)
    axes[0].set_ylabel(name, color=INK, fontsize=8)
    return figure


def against_target(
    targets: np.ndarray,
    outputs: np.ndarray,
    tolerance: float | None,
    name: str = "target",
    mean: float = 0.0,
    std: float = 1.0,
) -> Figure:
    """Draw outputs over targets; dashed lines bound the errors within tolerance.

    Args:
      targets, outputs: [n], standardised where `mean` and `std` are given.
      tolerance: in the same unit.
      name: of the target.
      mean, std: those of the target in its own unit, in which it is drawn.
    """
    targets, outputs = targets * std + mean, outputs * std + mean
    tolerance = None if tolerance is None else tolerance * std
    title = f"mean absolute error {np.mean(np.abs(outputs - targets)):.4g}"
    figure, ax = one_panel(3.8, 3.6, title)
    plain_axes(ax)
    ends = np.array([targets.min(), targets.max()])
    ax.plot(ends, ends, color=FAINT, linewidth=1.0)
    if tolerance is not None:
        for side in (-tolerance, tolerance):
            ax.plot(ends, ends + side, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
    ax.plot(targets, outputs, ".", color=COLOURS["val"], ms=4)
    ax.set_xlabel(name)
    ax.set_ylabel(f"output for {name}", color=INK, fontsize=9)
    return figure


def labelled(
    tokens: np.ndarray, targets: np.ndarray, predicted: np.ndarray, counts: np.ndarray
) -> Figure:
    """Draw sequences of tokens with their target and predicted classes; errors are red.

    Args:
      tokens: int [n, T], the inputs.
      targets, predicted: int [n, steps].
      counts: bool [n, steps], the steps that count.
    """
    n = min(len(tokens), ROWS)
    steps = max(tokens.shape[1], targets.shape[1])
    figure = new_figure(min(0.2 * steps + 1.2, 16), 0.75 * n + 0.3)
    axes = figure.subplots(n, 1, squeeze=False)[:, 0]
    rows = zip(axes, tokens, targets, predicted, counts, strict=False)
    for ax, read, target, output, counted in rows:
        ax.set_xlim(-0.5, steps - 0.5)
        ax.set_ylim(2.5, -0.5)
        ax.set_yticks(range(3), ["input", "target", "predicted"], fontsize=7)
        ax.set_xticks([])
        ax.tick_params(length=0, labelcolor=INK)
        ax.spines[:].set_color(GRID)
        judged = np.where(target == output, RIGHT, WRONG)
        for row, values, colours in (
            (0, read, np.full(len(read), INK)),
            (1, target, np.where(counted, INK, GRID)),
            (2, output, np.where(counted, judged, GRID)),
        ):
            for column, (value, colour) in enumerate(zip(values, colours, strict=True)):
                ax.text(column, row, str(value), color=str(colour), **TOKEN | {"fontsize": 7})
    return figure
