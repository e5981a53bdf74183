"""Optimizers: their paths, their range of good rates, the correction of Adam, moving averages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import compose
from experiments.core.config import build
from experiments.lessons.charts import curves, panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting, final
from experiments.types import PositiveInt
from experiments.viz.figures import INK, LEGEND

START = {"x": -7.0, "y": 2.0}
# rates at which the textbook draws the paths
PATHS = {"sgd": 0.95, "momentum": 0.1, "adagrad": 1.5, "rmsprop": 0.1, "adam": 0.3}
STEPS = 30
RATES = np.logspace(-4, 0.5, 10)
BETAS = (0.5, 0.9, 0.98)


@dataclass(frozen=True, kw_only=True)
class Optimizers(Lesson):
    """SGD zigzags where momentum and adaptive rates go straight, and none is best at every rate.

    The surface x²/20 + y² is twenty times steeper in y. Below, the paths of five optimizers from
    (−7, 2); the five on digits over four and a half decades of learning rates; the first step of
    Adam with and without the correction of its bias; and what a weighted average follows.

    Args:
      epochs: of each run on digits.

    References:
      Duchi et al. 2011; Tieleman & Hinton 2012; Kingma & Ba 2015.
    """

    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        self._paths(lab)
        self._rates(lab)
        self._averages(lab)

    def _paths(self, lab: Lab) -> None:
        figure, axes = panels([f"{n}, rate {r:g}" for n, r in PATHS.items()], columns=3, height=2.4)
        xs, ys = np.meshgrid(np.linspace(-8, 8, 80), np.linspace(-3, 3, 60))
        lengths, turns = {}, {}
        for ax, (name, rate) in zip(axes, PATHS.items(), strict=True):
            path = _path(name, rate)
            ax.contour(xs, ys, xs**2 / 20 + ys**2, levels=12, colors="#c8ccd1", linewidths=0.7)
            ax.plot(path[:, 0], path[:, 1], "o-", color=INK, ms=3, linewidth=1)
            ax.plot(0, 0, "x", color="#c4232b", ms=7)
            ax.set(xlabel="x", ylabel="y", xlim=(-8, 8), ylim=(-3, 3))
            lengths[name] = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
            turns[name] = int((np.diff(np.sign(path[:, 1])) != 0).sum())
        lab.figure(
            "paths", figure, f"The first {STEPS} steps on x²/20 + y²; the cross is the minimum."
        )
        others = [name for name in PATHS if name != "sgd"]
        claim = "SGD crosses the valley most often"
        numbers = ", ".join(f"{name} {count}" for name, count in turns.items())
        most = max(turns[name] for name in others)
        lab.conclude(claim, turns["sgd"] > most, f"changes of side in {STEPS} steps: {numbers}")

    def _rates(self, lab: Lab) -> None:
        shared = ["model=mlp", "data=digits", "model.hidden=[64]", f"trainer.epochs={self.epochs}"]
        settings = {
            f"{name} {rate:.3g}": [*shared, f"optim={name}", f"optim.learning_rate={rate:.3g}"]
            for name in PATHS
            for rate in RATES
        }
        runs, names = by_setting(settings, self.seeds)
        accuracy = np.nan_to_num(final(lab.train("rates", runs), "val/accuracy"))  # 0: diverged
        table = {
            name: np.array(
                [accuracy[[n == f"{name} {rate:.3g}" for n in names]] for rate in RATES]
            ).T
            for name in PATHS
        }
        figure, (ax,) = panels(["accuracy after the same number of epochs"], width=6.0, height=3.6)
        curves(ax, RATES, table)
        ax.set_xscale("log")
        ax.set(xlabel="learning rate", ylabel="validation accuracy")
        lab.figure(
            "rates", figure, "Mean and deviation over seeds: each optimizer has rates of its own."
        )
        best = {name: float(RATES[values.mean(axis=0).argmax()]) for name, values in table.items()}
        lab.table(
            "best rate on digits",
            ["optimizer", "rate", "validation accuracy"],
            [[n, f"{r:.3g}", f"{table[n].mean(axis=0).max():.4f}"] for n, r in best.items()],
        )
        claim = "the best rates of the five lie more than a decade apart"
        apart = max(best.values()) / min(best.values())
        numbers = ", ".join(f"{name} {rate:.2g}" for name, rate in best.items())
        lab.conclude(claim, apart > 10, numbers)
        adam, sgd = (
            table[name][:, int(np.argmin(np.abs(RATES - 1e-3)))] for name in ("adam", "sgd")
        )
        lab.compare("at a rate of 0.001 Adam is ahead of SGD", adam, sgd)

    def _averages(self, lab: Lab) -> None:
        steps = np.arange(1, 101)
        rng = np.random.default_rng(0)
        values = 10 + 5 * np.sin(steps / 20) + rng.normal(0, 1.5, len(steps))
        figure, (ax, first) = panels(["weighted averages", "first steps of Adam, rate 0.001"])
        ax.plot(steps, values, ".", color="#a0a6ad", ms=3, label="values")
        begun = {}
        for index, beta in enumerate(BETAS):
            raw = np.zeros(len(steps))
            for i, value in enumerate(values):
                raw[i] = beta * (raw[i - 1] if i else 0.0) + (1 - beta) * value
            corrected = raw / (1 - beta**steps)
            ax.plot(steps, corrected, label=f"β = {beta}, corrected", **style(index, marks=False))
            begun[beta] = raw[0] / values[0], corrected[0] / values[0]
        raw_share, corrected_share = begun[BETAS[-1]]
        ax.set(xlabel="step", ylabel="value")
        ax.legend(**LEGEND)
        gradient = {"w": jnp.ones(())}
        adam = _adam_steps(gradient, 50)
        # the same rule without its two corrections, from Kingma & Ba's algorithm 1
        t = np.arange(1, 51)
        plain = 1e-3 * (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
        first.plot(t, adam, label="with the correction", **style(0, marks=False))
        first.plot(t, plain, label="without it", **style(1, marks=False))
        first.set(xlabel="step", ylabel="size of the step, gradient always 1")
        first.legend(**LEGEND)
        lab.figure(
            "averages", figure, "The larger β, the smoother and the later an average follows."
        )
        lab.conclude(
            "Adam's first step is its learning rate; without the correction it is three times that",
            bool(abs(adam[0] / 1e-3 - 1) < 0.01 and 2.5 < plain[0] / 1e-3 < 3.5),
            f"{adam[0]:.2e} against {plain[0]:.2e} at a rate of 1e-03",
        )
        lab.conclude(
            "an average begins near zero, and the correction removes this",
            bool(raw_share < 0.1 and abs(corrected_share - 1) < 1e-6),
            f"first average over first value with β = {BETAS[-1]}: {raw_share:.2f}, corrected 1",
        )


def _path(name: str, rate: float) -> np.ndarray:
    """Return the points [STEPS + 1, 2] of an optimizer of this project on x²/20 + y²."""

    def loss(point: Mapping[str, Any]) -> jax.Array:
        return point["x"] ** 2 / 20 + point["y"] ** 2

    optimizer = build(compose(f"optim={name}", f"optim.learning_rate={rate}")["optim"])
    point = {key: jnp.float32(value) for key, value in START.items()}
    state, found = optimizer.init(point), [list(START.values())]
    step = jax.jit(
        lambda point, state: optimizer.step(jax.grad(loss)(point), state, point, 1.0, True)
    )
    for _ in range(STEPS):
        point, state = step(point, state)
        found.append([float(point["x"]), float(point["y"])])
    return np.array(found)


def _adam_steps(gradient: Mapping[str, Any], count: int) -> np.ndarray:
    optimizer = build(compose("optim=adam", "optim.learning_rate=0.001")["optim"])
    point: Any = {"w": jnp.zeros(())}
    state, found = optimizer.init(point), []
    for _ in range(count):
        new, state = optimizer.step(gradient, state, point, 1.0, True)
        found.append(float(jnp.abs(new["w"] - point["w"])))
        point = new
    return np.array(found)
