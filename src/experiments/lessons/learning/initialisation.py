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
from experiments.types import Initializer, PositiveInt
from experiments.viz.figures import INK
from experiments.viz.pages.statistics import spread

LAYERS, WIDTH, EXAMPLES = 5, 100, 1000
INITS = {
    "std 1": "normal_1.0",
    "std 0.01": "normal_0.01",
    "Xavier": "xavier_normal",
    "He": "he_normal",
}
# activations, and between which ends their values are
RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": None}
Ends = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Initialisation(Lesson):
    """Initial weights decide whether activations keep their spread through the layers.

    A thousand normal inputs go through five layers of a hundred units. Weights of deviation 1 drive
    sigmoid and tanh to their ends, where they have no slope; weights of 0.01 leave all units of a
    layer alike; Xavier keeps the spread with tanh, which takes a part of it by itself, and He with
    rectifiers, where Xavier's weights lose half of the variance in each layer. And units that begin
    equal receive equal gradients: they stay one unit.

    Args:
      epochs: of the runs with equal weights.

    References:
      Glorot & Bengio 2010; He et al. 2015.
    """

    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        ratio, ends = self._activations(lab)
        lab.compare(
            "Xavier keeps more than a third of tanh's spread", ratio["tanh", "Xavier"], 1 / 3
        )
        lab.compare("He keeps more than half of relu's spread", ratio["relu", "He"], 0.5)
        lab.compare("Xavier keeps less than half of relu's spread", 0.5, ratio["relu", "Xavier"])
        for activation in ("tanh", "relu"):
            claim = f"weights of 0.01 lose nine tenths of {activation}'s spread"
            lab.compare(claim, 0.1, ratio[activation, "std 0.01"])
        for activation, share in ends.items():
            claim = f"weights of deviation 1 drive more than half of {activation}'s units to an end"
            lab.compare(claim, share, 0.5)
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

    def _activations(self, lab: Lab) -> tuple[dict[tuple[str, str], list[float]], Ends]:
        """Draw the grid of histograms, of the first draw of the weights.

        Returns:
          Of each draw the deviation of the fifth layer over that of the first, by activation and
          initializer; and, with weights of deviation 1, the share of the fifth layer's activations
          within 5 % of an end of their range.
        """
        titles = [f"{activation}, {init}" for activation in RANGES for init in INITS]
        figure, axes = panels(titles, columns=len(INITS), width=2.9, height=2.1)
        drawn = {name: build(compose(f"init={init}")["init"]) for name, init in INITS.items()}
        ratio: dict[tuple[str, str], list[float]] = {}
        at_ends: Ends = {}
        for ax, title in zip(axes, titles, strict=True):
            activation, init = title.split(", ")
            draws = [_layers(activation, drawn[init], seed) for seed in range(self.seeds)]
            for layer, x in enumerate(draws[0]):
                counts, edges = np.histogram(x, bins=40)
                look: Any = {"color": str(0.75 - 0.15 * layer), "linewidth": 1.3}
                ax.plot(edges[:-1], counts / counts.max(), label=f"{layer + 1}", **look)
            ratio[activation, init] = [float(xs[-1].std() / xs[0].std()) for xs in draws]
            if init == "std 1" and (limits := RANGES[activation]) is not None:
                low, high = limits
                shares = [(xs[-1] - low) / (high - low) for xs in draws]
                at_ends[activation] = [float(np.mean((s < 0.05) | (s > 0.95))) for s in shares]
            ax.set_yticks([])
            ax.xaxis.set_major_locator(MaxNLocator(3))
        for ax in axes[-len(INITS) :]:
            ax.set_xlabel("activation")
        for ax in axes[:: len(INITS)]:
            ax.set_ylabel("share (each scaled to 1)", color=INK)
        axes[0].legend(title="layer", frameon=False, fontsize=7, title_fontsize=7)
        caption = f"Activations of {EXAMPLES} inputs in five layers of {WIDTH} units, the darker "
        lab.figure("activations", figure, f"{caption}the deeper; one draw of the weights.")
        columns = ["activation", "weights", "spread kept from the first layer to the fifth"]
        rows = [[*which, spread(values)] for which, values in ratio.items()]
        lab.table("deviation of the fifth layer over that of the first", columns, rows)
        return ratio, at_ends


def _layers(activation: str, draw: Initializer, seed: int) -> list[np.ndarray]:
    """Return the activations of each layer for normal inputs, with a draw of the weights."""
    x = np.random.default_rng(seed).normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
    found = []
    for key in jax.random.split(jax.random.key(seed), LAYERS):
        weights = np.asarray(draw(key, (WIDTH, WIDTH), np.float32))
        x = np.asarray(ACTIVATIONS[activation](x @ weights))
        found.append(x)
    return found
