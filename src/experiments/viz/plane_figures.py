"""Figures of points in the plane: how a classifier divides it, and what a generator draws there."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.viz.figures import FAINT, INK, LEGEND, one_panel
from experiments.viz.trial_view import TrialView, Weights

SHOWN = 1000  # most points of a figure
SIDE = 160  # of the grid on which a classifier is asked
MARKS = "os^Dv<>P*X"  # so that classes can be distinguished without colours


def in_plane(trial: TrialView) -> bool:
    """Return whether the inputs of a trial are points in the plane."""
    return trial.experiment.input_shape == (2,)


def decision_boundary(trial: TrialView, weights: Weights) -> Figure:
    """Draw the regions in which a classifier decides for each class, and the split's points."""
    points, labels = _examples(trial)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.2 * (high - low).max()
    xs, ys = (
        np.linspace(a - margin, b + margin, SIDE, dtype=np.float32)
        for a, b in zip(low, high, strict=True)
    )
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    probabilities = trial.apply(_probabilities, weights, grid)
    classes = probabilities.argmax(axis=1).reshape(SIDE, SIDE)
    split = f"{trial.split} split: {len(points)} points"
    figure, ax = one_panel(5.4, 4.6, f"where each class is predicted ({split})")
    count = trial.classes
    colours = [_colour(i) for i in range(count)]
    edges = np.arange(count + 1) - 0.5
    ax.contourf(xs, ys, classes, levels=edges, colors=colours, alpha=0.25)
    for i in range(count):  # the lines between the regions, for eyes without colours
        ax.contour(xs, ys, classes == i, levels=[0.5], colors=[INK], linewidths=1)
    _scatter(ax, points, labels, trial.labels)
    return figure


def samples(trial: TrialView, drawn: np.ndarray) -> Figure:
    """Draw generated points [N, 2] over as many of the data."""
    points, _ = _examples(trial)
    figure, ax = one_panel(5.0, 4.6, f"{len(drawn)} generated points over the data")
    ax.scatter(
        points[:, 0], points[:, 1], s=10, color=FAINT, alpha=0.5, linewidths=0, label=trial.split
    )
    ax.scatter(
        drawn[:, 0],
        drawn[:, 1],
        s=10,
        color="#d9822b",
        marker="x",
        linewidths=0.8,
        label="generated",
    )
    _axes(ax)
    return figure


def points_of(images: np.ndarray) -> np.ndarray:
    """Return points [N, 2] of what models of images give for them, [N, 1, 2, 1]."""
    return images.reshape(len(images), 2)


def _probabilities(objective: Any, model: Any, points: jax.Array) -> jax.Array:
    batch = {"sequence": points, "label": np.zeros(len(points), np.int32)}
    _, logits = objective(model, batch, nnx.Rngs(sample=0), None)
    return objective.predictions(logits)


def _examples(trial: TrialView) -> tuple[np.ndarray, np.ndarray]:
    batch = trial.examples(trial.split, SHOWN)
    points = np.asarray(batch["sequence"])
    return points, np.asarray(batch.get("label", np.zeros(len(points), int)))


def _scatter(ax: Axes, points: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        mark: dict[str, Any] = {"marker": MARKS[i % len(MARKS)], "color": _colour(i)}
        x, y = points[labels == i].T
        ax.scatter(x, y, s=14, edgecolor=INK, linewidth=0.4, label=name, **mark)
    _axes(ax)


def _axes(ax: Axes) -> None:
    ax.set(xlabel="first input", ylabel="second input")
    ax.set_aspect("equal")
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    ax.spines[:].set_color(FAINT)
    ax.legend(**LEGEND, loc="center left", bbox_to_anchor=(1, 0.5))


def _colour(index: int) -> Any:
    return colormaps["tab10"](index % 10)
