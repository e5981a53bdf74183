"""The numbers of a run's layers over its epochs, with `trainer.diagnostics=true`."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.viz.figures import INK, LEGEND, TITLE, new_figure, plain_axes
from experiments.viz.trial_view import TrialView

PREFIX = "diagnostics/"
PANELS = {  # by quantity: the title, and whether the axis is logarithmic
    "grad_norm": ("norm of the gradient", True),
    "update_ratio": ("norm of the update / of the weights", True),
    "output_std": ("standard deviation of the outputs", True),
    "dead_units": ("share of units without gradient", False),
}
MANY = 12  # layers, of which those without a kernel are left out where there are more
NAMED = 16  # most layers in the legend
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def layers_of(trial: TrialView) -> dict[str, Callable[[], Figure]]:
    """Return the drawing of the layers of a trial by its name; none where there are no numbers."""
    lines = [line for line in trial.history() if any(name.startswith(PREFIX) for name in line)]
    return {"diagnostics": functools.partial(layer_figure, lines)} if lines else {}


def layer_figure(lines: Sequence[dict[str, float]]) -> Figure:
    """Draw a panel for each quantity, a line for each layer, the darker the nearer to the input.

    Args:
      lines: those of `metrics.jsonl` with `epoch` and `diagnostics/<layer>/<quantity>`.
    """
    found = {n.removeprefix(PREFIX).rpartition("/")[0] for n in lines[0] if n.startswith(PREFIX)}
    layers = sorted(found, key=lambda name: (name.rpartition(".")[2] == "output", name))
    if len(layers) > MANY:
        layers = [x for x in layers if f"{PREFIX}{x}/dead_units" in lines[0]] or layers
    figure = new_figure(10.5, 6.4)
    epochs = [line["epoch"] for line in lines]
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    named = np.linspace(0, len(layers) - 1, min(NAMED, len(layers))).round().astype(int)
    for ax, (quantity, (title, logarithmic)) in zip(
        figure.subplots(2, 2).flat, PANELS.items(), strict=True
    ):
        plain_axes(ax)
        ax.set_title(title, **TITLE)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        for number, layer in enumerate(layers):
            name = f"{PREFIX}{layer}/{quantity}"
            values = np.array([line.get(name, np.nan) for line in lines], float)
            if logarithmic:
                values[values <= 0] = np.nan
            label = layer if number in named and quantity == "grad_norm" else None
            style = DASHES[number % len(DASHES)]
            options = {"color": shades[number], "linestyle": style, "marker": "o", "ms": 2.5}
            ax.plot(epochs, values, linewidth=1.3, label=label, **options)
        if logarithmic:
            ax.set_yscale("log")
            ax.tick_params(which="both", labelsize=8, labelcolor=INK)
        else:
            ax.set_ylim(-0.03, 1.03)
    figure.legend(loc="outside right upper", title="layer", title_fontsize=8, **LEGEND)
    return figure
