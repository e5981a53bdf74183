"""The picture of a learning-rate range test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from experiments.viz.figures import COLOURS, INK, TITLE, WRONG, _figure, _quiet

CEILING = 2.0  # the loss axis ends at so many times the loss of the smallest rate


def range_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Training and validation loss against the learning rate; rates that diverged are marked.

    Args:
      rows: of each rate `learning_rate`, `status`, `train/loss` and `val/loss`, rates rising.
    """
    figure = _figure(5.6, 3.6)
    ax = figure.subplots()
    _quiet(ax)
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
    ax.set_title("loss after the same number of steps", **TITLE)
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure
