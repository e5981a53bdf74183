"""Initial weights."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments import compose
from experiments.core.config import build
from experiments.lessons.charts import panels
from experiments.lessons.lesson import Lab, Lesson
from experiments.models.layers import ACTIVATIONS
from experiments.types import PositiveInt
from experiments.viz.figures import INK

LAYERS, WIDTH, EXAMPLES = 5, 100, 1000
INITS = {
    "std 1": "normal_1.0",
    "std 0.01": "normal_0.01",
    "Xavier": "xavier_normal",
    "He": "he_normal",
}


@dataclass(frozen=True, kw_only=True)
class Initialisation(Lesson):
    """Initial weights decide whether activations keep their spread through the layers.

    A thousand normal inputs go through five layers of a hundred units. Weights of deviation 1 drive
    sigmoid and tanh to their ends, where they have no slope; weights of 0.01 leave all units of a
    layer alike; Xavier keeps the spread with tanh, He with rectifiers. And units that begin equal
    receive equal gradients: they stay one unit.

    Args:
      epochs: of the runs with equal weights.

    References:
      Glorot & Bengio 2010; He et al. 2015.
    """

    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        spreads, ends = _activations(lab)
        for activation, good in (("tanh", "Xavier"), ("relu", "He")):
            # the deviation of the last layer over that of the first
            ratio = {
                init: spreads[activation, init][-1] / spreads[activation, init][0] for init in INITS
            }
            holds = 0.5 < ratio[good] < 2 and ratio["std 0.01"] < 0.1
            numbers = ", ".join(f"{init} {ratio[init]:.2g}" for init in INITS if init != "std 1")
            claim = f"{good} keeps the spread of {activation} within a half, small weights lose it"
            lab.conclude(claim, holds, f"fifth over first: {numbers}")
        lab.conclude(
            "weights of deviation 1 drive sigmoid and tanh to their ends",
            bool(ends["sigmoid"] > 0.5 and ends["tanh"] > 0.5),
            f"within 5 % of an end: sigmoid {ends['sigmoid']:.0%}, tanh {ends['tanh']:.0%}",
        )
        shared = ["model=mlp", "data=digits", "model.hidden=[16]", f"trainer.epochs={self.epochs}"]
        starts = {"zeros": "init=zeros", "all equal": "init=constant", "He": "init=he_normal"}
        trained = lab.train("equal_weights", [[*shared, init] for init in starts.values()])
        apart = {
            name: float(np.ptp(run.params["hidden.0.kernel"], axis=1).max())
            for name, run in zip(starts, trained, strict=True)
        }
        lab.conclude(
            "units that begin equal stay equal through training",
            bool(apart["zeros"] < 1e-5 and apart["all equal"] < 1e-5 < apart["He"]),
            "largest difference between units' weights: "
            + ", ".join(f"{name} {value:.2g}" for name, value in apart.items()),
        )


def _activations(lab: Lab) -> tuple[dict[tuple[str, str], list[float]], dict[str, float]]:
    """Draw the grid of histograms.

    Returns:
      The deviation of each layer by activation and initializer; and, with weights of deviation
      1, the share of the fifth layer's activations at the ends of their range.
    """
    x0 = np.random.default_rng(0).normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
    activations = ("sigmoid", "tanh", "relu")
    titles = [f"{activation}, {init}" for activation in activations for init in INITS]
    figure, axes = panels(titles, columns=len(INITS), width=2.9, height=2.1)
    spreads: dict[tuple[str, str], list[float]] = {}
    at_ends: dict[str, float] = {}
    for ax, title in zip(axes, titles, strict=True):
        activation, init = title.split(", ")
        draw: Any = build(compose(f"init={INITS[init]}")["init"])
        x, deviations = x0, []
        for layer, key in enumerate(jax.random.split(jax.random.key(0), LAYERS)):
            x = np.asarray(
                ACTIVATIONS[activation](x @ np.asarray(draw(key, (WIDTH, WIDTH), np.float32)))
            )
            deviations.append(float(x.std()))
            shade = str(0.75 - 0.15 * layer)
            counts, edges = np.histogram(x, bins=40)
            ax.plot(
                edges[:-1], counts / counts.max(), color=shade, linewidth=1.3, label=f"{layer + 1}"
            )
        spreads[activation, init] = deviations
        if init == "std 1" and activation != "relu":
            low = 0.0 if activation == "sigmoid" else -1.0
            share = (x - low) / (1 - low)
            at_ends[activation] = float(np.mean((share < 0.05) | (share > 0.95)))
        ax.set_yticks([])
        ax.xaxis.set_major_locator(MaxNLocator(3))
    for ax in axes[-len(INITS) :]:
        ax.set_xlabel("activation")
    for ax in axes[:: len(INITS)]:
        ax.set_ylabel("share (each scaled to 1)", color=INK)
    axes[0].legend(title="layer", frameon=False, fontsize=7, title_fontsize=7)
    lab.figure(
        "activations",
        figure,
        f"Activations of {EXAMPLES} inputs in five layers of {WIDTH} units, the darker the deeper.",
    )
    return spreads, at_ends
