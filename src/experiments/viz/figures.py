"""The style of all figures, learning curves and learning-rate range tests.

Figures are pure functions from arrays to a `Figure` of their own, never through pyplot, so there is
no window, no global state and nothing to close. Importing matplotlib takes long: import this module
where a figure is wanted.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from experiments.objectives.metrics import monitored
from experiments.objectives.units import units_of
from experiments.viz.trial_view import TrialView

INK, FAINT, GRID = "#24292f", "#6e7781", "#e6e8eb"
COLOURS = {"train": "#4878a8", "val": "#d9822b", "test": "#6a51a3"}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "color": INK, "fontweight": "bold"}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": INK}
PICTURE: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
RIGHT, WRONG = "#1a7f37", "#c4232b"

SMOOTH_FROM = 100  # points from which a training curve is smoothed, over its faint raw values
LOG_FROM = 20.0  # ratio of the largest to the smallest value from which an axis is logarithmic
CEILING = 2.0  # end of the loss axis of a range test, in losses of the smallest rate

Points = tuple[np.ndarray, np.ndarray]


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")


def one_panel(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure of one panel below a title, and its axes."""
    figure = new_figure(width, height)
    ax = figure.subplots()
    ax.set_title(title, **TITLE)
    return figure, ax


def plain_axes(ax: Axes) -> None:
    """Give axes faint lines and a grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=FAINT, labelcolor=INK, labelsize=8)
    ax.xaxis.label.set(color=INK, fontsize=9)
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def learning_curves(
    history: Sequence[dict],
    metrics: Sequence[str] = ("loss", "accuracy"),
    monitor: tuple[str, str] = ("loss", "min"),
    units: Mapping[str, str] | None = None,
) -> Figure:
    """Draw metrics and the learning rate over the epochs of a run; the epoch used is marked.

    Args:
      history: the lines of `metrics.jsonl`, each a dict with `step`, `epoch` and any of
        `train/loss`, `val/loss`, `test/loss`, the same for other metrics, and `learning_rate`.
      metrics: one panel per metric; those without data are left out.
      monitor: the metric that tells which epoch is used, and `min`, `max` or `last`; with the
        last nothing is marked as best.
      units: in what metrics are, by name, where that is to be said.
    """
    panels = [m for m in metrics if any(_series(history, f"{s}/{m}") for s in COLOURS)]
    rates = _series(history, "learning_rate")
    changing = rates if rates and np.ptp(rates[1]) > 0 else None
    count = max(len(panels) + bool(changing), 1)
    figure = new_figure(4.4 * count, 3.4, layout=None)
    axes = _panels(figure, count)
    for ax in axes:
        plain_axes(ax)
        _epoch_axis(ax, history)
    used = _used(history, *monitor)
    for ax, metric in zip(axes, panels, strict=False):
        _metric_panel(ax, history, metric, used, is_best=monitor[1] != "last")
        if unit := (units or {}).get(metric):
            ax.set_title(plain(f"{metric} ({unit})"), **TITLE)
    if changing:
        axes[-1].plot(*changing, color=INK, linewidth=1.4)
        axes[-1].set_title("learning rate", **TITLE)
        _scale(axes[-1], changing[1])
    if not panels and not changing:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "no metrics", ha="center", color=FAINT, transform=axes[0].transAxes)
    return figure


def curves_of(trial: TrialView, *metrics: str) -> dict[str, Callable[[], Figure]]:
    """Return the drawing of a trial's learning curves by its name; one asked for is among them."""
    asked = trial.config["trainer"]
    monitor = monitored(trial.objective.monitor, asked["monitor"], asked["monitor_mode"])
    shown = tuple(dict.fromkeys([*metrics, *filter(None, [asked["monitor"]])]))
    units = units_of(
        trial.objective,
        trial.experiment.units,
        trial.experiment.spec.stored,
        trial.found,
        trial.config["data"],
    )
    draw = functools.partial(learning_curves, trial.history(), shown, monitor, units)
    return {"learning_curves": draw}


def range_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the losses of a range test over the learning rate; rates that diverged are marked.

    Args:
      rows: `learning_rate`, `status`, `train/loss` and `val/loss` of each rate, rates rising.
    """
    figure, ax = one_panel(5.6, 3.6, "loss after the same number of steps")
    plain_axes(ax)
    rates = np.array([row["learning_rate"] for row in rows])
    highest = 0.0
    for split in ("train", "val"):
        losses = np.array([row[f"{split}/loss"] or np.nan for row in rows], float)
        losses[[row["status"] == "diverged" for row in rows]] = np.nan
        ax.plot(rates, losses, color=COLOURS[split], marker="o", ms=3, linewidth=1.4, label=split)
        finite = losses[np.isfinite(losses)]
        if split == "val" and len(finite):
            best = int(np.nanargmin(losses))
            label = f"lowest at {rates[best]:.2g}"
            ax.axvline(rates[best], color=INK, linewidth=1, linestyle=(0, (2, 2)), label=label)
        highest = max(highest, finite[0] if len(finite) else 0.0)
    diverged = [row["learning_rate"] for row in rows if row["status"] == "diverged"]
    if diverged:
        ax.axvspan(min(diverged), rates[-1], color=WRONG, alpha=0.1, label="diverged")
    ax.set_xscale("log")
    if highest > 0:
        ax.set_ylim(0, CEILING * highest)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_xlabel("learning rate")
    ax.legend(**LEGEND)
    return figure


def _metric_panel(
    ax: Axes, history: Sequence[dict], metric: str, used: float | None, *, is_best: bool
) -> None:
    drawn, shown = [], []
    for split, colour in COLOURS.items():
        # of a network with auxiliary classifiers, what an evaluation is to be compared with
        main = _series(history, f"{split}/main_{metric}")
        if not (points := main or _series(history, f"{split}/{metric}")):
            continue
        drawn.append(points[1])
        if split == "train":
            _training_curve(ax, points, colour, "train, main classifier" if main else "train")
            shown.append(points[1][points[0] > _first(history)])
        elif split == "val":
            _validation_curve(ax, points, colour, used if is_best else None)
            shown.append(points[1])
        else:
            at = points[0][-1] if used is None else used
            label = f"test {points[1][-1]:.4g}"
            look: dict[str, Any] = {
                "marker": "D",
                "ms": 5,
                "zorder": 5,
                "linestyle": "",
                "color": colour,
            }
            ax.plot(at, points[1][-1], label=label, **look)
            shown.append(points[1])
    ax.set_title(metric, **TITLE)
    if metric == "loss":
        _scale(ax, np.concatenate(drawn))
    elif len(values := np.concatenate(shown)) > 1 and np.ptp(values) > 0:
        room = 0.06 * np.ptp(values)  # where the data are once there was an evaluation
        ax.set_ylim(values.min() - room, values.max() + room)
    name = _place(history)
    bad = [e[name] for e in history if not math.isfinite(float(e.get(f"train/{metric}", 0)))]
    if bad:
        label = f"not finite from {name} {bad[0]:.4g}"
        ax.axvline(bad[0], color=WRONG, linewidth=1.2, linestyle=(0, (2, 2)), label=label)
    ax.legend(**LEGEND)


def _training_curve(ax: Axes, points: Points, colour: str, label: str) -> None:
    places, values = points
    marker = "o" if len(places) == 1 else None
    if len(places) >= SMOOTH_FROM:
        ax.plot(places, values, color=colour, linewidth=0.6, alpha=0.3)
        label, values = f"{label} (smoothed)", _smooth(values)
    ax.plot(places, values, color=colour, linewidth=1.4, marker=marker, ms=4, label=label)


def _validation_curve(ax: Axes, points: Points, colour: str, best: float | None) -> None:
    places, values = points
    marker = "o" if len(places) <= 30 else None
    ax.plot(places, values, color=colour, linewidth=1.4, marker=marker, ms=3, label="val")
    if best is not None and len(at := np.flatnonzero(places == best)):
        label = f"best epoch: {values[at[0]]:.4g}"
        ring: dict[str, Any] = {"mfc": "white", "mec": colour, "mew": 1.6, "ms": 7, "zorder": 4}
        ax.plot(best, values[at[0]], marker="o", linestyle="", label=label, **ring)


def _epoch_axis(ax: Axes, history: Sequence[dict]) -> None:
    """Count epochs in whole numbers, and say how many steps each has."""
    name = _place(history)
    if name == "epoch":
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        last = history[-1]
        each = last["step"] / last["epoch"] if last["epoch"] else 0
        name += f" of {each:,.0f} steps" if each else ""
    ax.set_xlabel(name)


def _place(history: Sequence[dict]) -> str:
    """Return by what lines are placed: `epoch`, or `step` where they do not know the epoch."""
    return "epoch" if history and all("epoch" in event for event in history) else "step"


def _first(history: Sequence[dict]) -> float:
    """Return the place of the first evaluation."""
    name = _place(history)
    evaluated = (e[name] for e in history if any(key.startswith("val/") for key in e))
    return next(evaluated, 0.0)


def _used(history: Sequence[dict], metric: str, mode: str) -> float | None:
    """Return the place of the validation whose weights are used; None without any."""
    if not (points := _series(history, f"val/{metric}")):
        return None
    places, values = points
    best = {"min": np.argmin, "max": np.argmax}
    return float(places[best[mode](values) if mode in best else -1])


def _series(history: Sequence[dict], key: str) -> Points | tuple[()]:
    """Return the places and the finite values of a metric; empty if there are none."""
    name = _place(history)
    points = np.array([(e[name], float(e[key])) for e in history if key in e]).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=-1)]
    return tuple(points.T) if len(points) else ()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Average exponentially over about a fiftieth of the curve, without start-up bias."""
    decay = 1 - 50 / len(values)
    both = (1 - decay) * np.stack([values, np.ones(len(values))], axis=1)
    averages = np.array(list(itertools.accumulate(both, lambda mean, x: decay * mean + x)))
    return averages[:, 0] / averages[:, 1]


def _scale(ax: Axes, values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if low > 0 and high / low > LOG_FROM:
        ax.set_yscale("log")
        digits = (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
        ax.yaxis.set_major_locator(LogLocator(subs=digits))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _panels(figure: Figure, count: int) -> list[Axes]:
    """Return axes side by side, with a fixed room for numbers: measuring it takes long."""
    width, height = figure.get_size_inches()
    left, right, bottom, top = 0.62, 0.12, 0.5, 0.47  # inches
    each = (width - right) / count - left
    sides = {"left": left / width, "right": 1 - right / width, "wspace": left / each}
    grid = {**sides, "bottom": bottom / height, "top": 1 - top / height}
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw=grid)[0])


def plain(text: str) -> str:
    """Escape what matplotlib takes for formulas, and replace control characters."""
    return "".join(c if c.isprintable() else "·" for c in text).replace("$", r"\$")
