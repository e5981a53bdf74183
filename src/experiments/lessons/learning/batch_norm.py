"""Batch normalisation over the scale of the initial weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from experiments.lessons.charts import panels, style
from experiments.lessons.lesson import Lab, Lesson
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND

SCALES = np.logspace(0, -4, 16)
LEARNT = 0.8  # training accuracy that counts as learnt


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
            [*shared, f"model.norm={norm}", f"init.stddev={scale:.4g}"]
            for norm in norms.values()
            for scale in SCALES
        ]
        trained = lab.train("scales", settings)
        accuracy = np.array([_accuracy(run, self.epochs) for run in trained])
        accuracy = accuracy.reshape(2, len(SCALES), -1)
        figure, axes = panels([f"weights of {s:.2g}" for s in SCALES], 4, width=2.6, height=2.0)
        epochs = np.arange(1, accuracy.shape[-1] + 1)
        for i, ax in enumerate(axes):
            for index, name in enumerate(norms):
                look = style(index, marks=False)
                ax.plot(epochs, accuracy[index, i], label=f"{name} normalisation", **look)
            ax.set_ylim(0, 1.02)
            if i % 4 == 0:
                ax.set_ylabel("training accuracy")
            if i >= 12:
                ax.set_xlabel("epoch")
        axes[0].legend(**LEGEND | {"fontsize": 7})
        caption = "Training accuracy over the epochs, from weights of deviation 1 down to 0.0001."
        lab.figure("scales", figure, caption)
        learnt = accuracy[..., -1] >= LEARNT
        plain, normal = learnt.sum(axis=1)
        lab.conclude(
            "with normalisation more of the sixteen scales are learnt",
            bool(normal > plain),
            f"{normal} of 16 with, {plain} without reach {LEARNT:.0%} of the training images",
        )
        spreads = accuracy[..., -1].std(axis=1)
        lab.conclude(
            "its end depends less on the start",
            bool(spreads[1] < spreads[0]),
            f"deviation of the last accuracy: {spreads[1]:.2f} against {spreads[0]:.2f}",
        )
        # the best scale of each, so that it is not only a matter of the start
        areas = accuracy.mean(axis=-1).max(axis=1)
        lab.conclude(
            "each from its best start, it is ahead on average over the epochs",
            bool(areas[1] > areas[0]),
            f"mean training accuracy {areas[1]:.3f} against {areas[0]:.3f}",
        )
        gaps = np.array([_gap(run) for run in trained])
        gaps = gaps.reshape(2, -1)
        both = learnt.all(axis=0)
        if both.sum() < 2:
            claim = "it regularises: the gap between validation and training loss is smaller"
            lab.conclude(claim, None, f"only {both.sum()} scales are learnt by both")
            return
        claim = "it regularises: the gap between validation and training loss is smaller"
        lab.compare(claim, gaps[0][both], gaps[1][both], paired=True)


def _accuracy(run: "Run", epochs: int) -> np.ndarray:
    """Return the training accuracy after each epoch, 0 from where a run has diverged."""
    found = np.zeros(epochs)
    if "train/epoch_accuracy" in run.metrics:
        values = run.metrics["train/epoch_accuracy"].dropna().to_numpy()
        found[: len(values)] = values
    return found


def _gap(run: "Run") -> float:
    """Return how much the validation loss is above the training loss at the end."""
    return run.summary.get("val/loss", np.nan) - run.summary.get("train/epoch_loss", np.nan)
