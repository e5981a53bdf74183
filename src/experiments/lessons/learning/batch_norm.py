"""Batch normalisation over the scale of the initial weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from experiments.lessons.charts import panels, style
from experiments.lessons.lesson import Lab, Lesson
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND

SCALES = np.logspace(0, -4, 16)
LEARNT = 0.8  # training accuracy that counts as learnt
CAPTION = (
    "Training accuracy over the epochs, from weights of deviation 1 down to 0.0001; one seed. A "
    "run that diverges has no curve from there on."
)

if TYPE_CHECKING:
    from experiments.cli.python import Run


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Lesson):
    """Batch normalisation learns from almost any scale of the initial weights, and faster.

    Sixteen deviations of the initial weights from 1 to 0.0001, a network of five hidden layers with
    and without normalisation before each activation. Without it only a narrow band of scales
    carries a signal through the layers. That it also regularises is measured where both learn: by
    the gap between the loss on validation and on training images.

    Args:
      epochs: of each run.
      examples: of training.

    References:
      Ioffe & Szegedy 2015; the figure of 4 x 4 panels follows Saito 2016, "Deep learning from
      scratch", section 6.3.
    """

    epochs: PositiveInt
    examples: PositiveInt

    def run(self, lab: Lab) -> None:
        shared = ["model=mlp", "data=digits", "model.hidden=[100,100,100,100,100]", "optim=sgd"]
        shared += ["optim.learning_rate=0.05", "init=normal", f"data.limit={self.examples}"]
        shared += [f"trainer.epochs={self.epochs}", "data.batch_size=100"]
        norms = {"without": "none", "with": "batch"}
        settings = [
            [*shared, f"model.norm={norm}", f"init.stddev={scale:.4g}", f"seed={seed}"]
            for norm in norms.values()
            for seed in range(self.seeds)
            for scale in SCALES
        ]
        trained = lab.train("scales", settings)
        curves = np.array([_accuracy(run, self.epochs) for run in trained])
        curves = curves.reshape(2, self.seeds, len(SCALES), self.epochs)
        lab.figure("scales", _drawn(curves[:, 0], list(norms)), CAPTION)
        accuracy = np.nan_to_num(curves)  # a run that has diverged gets none right
        learnt = accuracy[..., -1] >= LEARNT
        counts = learnt.sum(axis=2)
        lab.compare(
            f"with normalisation more of the sixteen scales reach {LEARNT:.0%} of training images",
            counts[1],
            counts[0],
        )
        without, normal = accuracy[..., -1].std(axis=2)
        claim = "its end depends less on the start: last accuracies deviate less between scales"
        lab.compare(claim, without, normal)
        # the best scale of each, so that it is not only a matter of the start
        areas = accuracy.mean(axis=-1).max(axis=2)
        claim = "each from its best start, it is ahead on average over the epochs"
        lab.compare(claim, areas[1], areas[0])
        gaps = np.array([_gap(run) for run in trained]).reshape(learnt.shape)
        both = learnt.all(axis=(0, 1))
        claim = "it regularises: the gap between validation and training loss is smaller"
        if both.any():
            lab.compare(claim, *gaps[..., both].mean(axis=2), paired=True)
        else:
            lab.conclude(claim, None, "no scale is learnt by both")


def _drawn(curves: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw training accuracies, [with and without, scales, epochs], NaN after a divergence."""
    figure, axes = panels([f"weights of {s:.2g}" for s in SCALES], 4, width=2.6, height=2.0)
    epochs = np.arange(1, curves.shape[-1] + 1)
    for i, ax in enumerate(axes):
        for index, name in enumerate(names):
            look = style(index, marks=False)
            ax.plot(epochs, curves[index, i], label=f"{name} normalisation", **look)
            if np.isnan(curves[index, i, -1]):
                words = {"color": look["color"], "fontsize": 7, "transform": ax.transAxes}
                ax.text(0.03, 0.03 + 0.09 * index, f"{name}: diverged", **words)
        ax.set(ylim=(0, 1.02), xlim=(0, epochs[-1] + 1))
        if i % 4 == 0:
            ax.set_ylabel("training accuracy")
        if i >= 12:
            ax.set_xlabel("epoch")
    axes[4].legend(**LEGEND | {"fontsize": 7})
    return figure


def _accuracy(run: "Run", epochs: int) -> np.ndarray:
    """Return the training accuracy after each epoch, NaN from where a run has diverged."""
    found = np.full(epochs, np.nan)
    if "train/epoch_accuracy" in run.metrics:
        values = run.metrics["train/epoch_accuracy"].dropna().to_numpy()
        found[: len(values)] = values
    return found


def _gap(run: "Run") -> float:
    """Return how much the validation loss is above the training loss at the end."""
    return run.summary.get("val/loss", np.nan) - run.summary.get("train/epoch_loss", np.nan)
