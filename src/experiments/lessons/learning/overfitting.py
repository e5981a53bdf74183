"""Overfitting and what is done against it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.lessons.charts import bars, panels, same_decades, style
from experiments.lessons.lesson import Lab, Lesson, by_setting
from experiments.models.layers import Dropout
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND
from experiments.viz.pages.statistics import spread

REMEDIES = {
    "L2": ["optim.l2=3e-3"],
    "L1": ["optim.l1=3e-4"],
    "dropout": ["model.dropout=0.5"],
    "early stopping": ["trainer.patience=5", "trainer.monitor=loss"],
    "augmentation": ["data.augment.translation=0.125", "data.augment.rotation=10.0"],
}
DRAWS = 2000  # of dropout


@dataclass(frozen=True, kw_only=True)
class Overfitting(Lesson):
    """With few examples a network memorises them, and the usual remedies lower its loss.

    A network of two hidden layers sees 300 digits until it makes no error on them. Beside it the
    same network with a penalty on its weights, dropout, early stopping, or shifted and turned
    images. What counts is the loss on validation images at the end, with early stopping at the
    epoch that it stops for; runs of one seed begin with the same weights, so they are pairs.

    Args:
      examples: of training.
      epochs: of each run.

    References:
      Krogh & Hertz 1992; Srivastava et al. 2014; Prechelt 1998, "Early stopping — but when?".
    """

    examples: PositiveInt
    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        shared = ["model=mlp", "data=digits", "model.hidden=[128,128]", "trainer.log_every=1000"]
        shared += [f"data.limit={self.examples}", f"trainer.epochs={self.epochs}"]
        settings = {"none": shared} | {name: [*shared, *more] for name, more in REMEDIES.items()}
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("trainings", runs)
        figure, axes = panels(list(settings), columns=3, height=2.4)
        losses, accuracies, gaps = {}, {}, {}
        for ax, name in zip(axes, settings, strict=True):
            own = [run for run, given in zip(trained, names, strict=True) if given == name]
            history = own[0].metrics
            for index, split in enumerate(("train/epoch_loss", "val/loss")):
                curve = history[split].dropna().to_numpy()
                look = style(index, marks=False)
                label = ("training", "validation")[index]
                ax.plot(np.arange(1, len(curve) + 1), curve, label=label, **look)
            ends = [run.summary for run in own]
            if name == "early stopping":
                ends = [end["best"] for end in ends]
                used, stop = ends[0]["epoch"], len(history["val/loss"].dropna())
                ax.axvline(used, label=f"weights of epoch {used:g}", **style(3, marks=False))
                end = f"stopped after {stop}" if stop < self.epochs else "never stopped"
                ax.axvline(stop, label=end, **style(5, marks=False))
            ax.set(xlabel="epoch", ylabel="loss")
            ax.legend(**LEGEND)
            losses[name] = np.array([end["val/loss"] for end in ends])
            accuracies[name] = np.array([end["val/accuracy"] for end in ends])
            gaps[name] = np.array([end["val/loss"] - end["train/epoch_loss"] for end in ends])
        same_decades(axes)
        lab.figure("curves", figure, "One run of each: what is memorised shows as the gap.")
        figure, (left, right) = panels(["validation loss", "validation accuracy"], width=5.0)
        bars(left, losses)
        bars(right, accuracies)
        left.set_ylabel("loss")
        right.set(ylabel="accuracy", ylim=(min(map(np.min, accuracies.values())) - 0.02, None))
        caption = "Means with ± one deviation over seeds; the axis on the right is cut off below."
        lab.figure("ends", figure, caption)
        lab.table(
            "at the end",
            ["remedy", "validation loss", "validation accuracy", "validation minus training loss"],
            [[n, spread(losses[n]), spread(accuracies[n]), spread(gaps[n])] for n in settings],
        )
        for name in REMEDIES:
            claim = f"{name} lowers the loss on unseen images"
            lab.compare(claim, losses["none"], losses[name], paired=True)
        mean, margin = _expectation()
        claim = "inverted dropout keeps the expectation of a unit"
        lab.conclude(
            claim, abs(mean - 1) < margin, f"{mean:.4f} ± {margin:.4f} of it in {DRAWS} draws"
        )


def _expectation() -> tuple[float, float]:
    """Return the mean of a unit of 1 under dropout of a half, and its 95 % margin."""

    def draw(key: jax.Array) -> jax.Array:
        return Dropout(0.5)(jnp.ones(1), rngs=nnx.Rngs(dropout=key))[0]

    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), DRAWS)))
    return float(drawn.mean()), 1.96 * float(drawn.std(ddof=1)) / DRAWS**0.5
