"""Batch, mini-batch and stochastic descent."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from experiments.lessons.charts import panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting, over
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND
from experiments.viz.pages.statistics import spread

SIZES = (1, 16, 128, 1024)
EXAMPLES = 1024
WINDOW = 256  # examples whose losses are drawn as one point


@dataclass(frozen=True, kw_only=True)
class Descent(Lesson):
    """Small batches are noisy and cheap, large ones smooth and dear.

    A step of a small batch costs less and takes a noisier direction. Per pass over the data small
    batches move further; per step large ones fall more smoothly. And accuracy is no criterion to
    descend by: it stays where it is while the loss moves.

    Args:
      epochs: of each run.
      rate: learning rate of all batch sizes, of plain gradient descent.

    References:
      Bottou 1998; LeCun et al. 1998, "Efficient backprop", section 4.1.
    """

    epochs: PositiveInt
    rate: float

    def run(self, lab: Lab) -> None:
        shared = [
            "model=mlp",
            "data=digits",
            "model.hidden=[32]",
            "optim=sgd",
            "trainer.log_every=1",
        ]
        shared += [f"optim.learning_rate={self.rate}", f"data.limit={EXAMPLES}"]
        settings = {
            str(size): [*shared, f"data.batch_size={size}", f"trainer.epochs={self.epochs}"]
            for size in SIZES
        }
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("batch_sizes", runs)
        figure, (per_epoch, per_step) = panels(["per pass over the data", "per step"])
        noise, reached = {}, {}
        for index, size in enumerate(SIZES):
            own = [run for run, name in zip(trained, names, strict=True) if name == str(size)]
            loss = own[0].metrics["train/loss"].dropna().to_numpy()
            stretches = np.arange(0, len(loss) + 1, max(WINDOW // size, 1))
            _draw(per_epoch, loss, stretches, size / EXAMPLES, f"batches of {size}", index)
            stretches = np.unique(np.geomspace(1, len(loss) + 1, 40).astype(int)) - 1
            _draw(per_step, loss, stretches, 1.0, f"batches of {size}", index)
            late = [run.metrics["train/loss"].dropna().to_numpy()[len(loss) // 2 :] for run in own]
            # from one step to the next, as a share: losses that have come further are smaller
            noise[size] = [float(np.abs(np.diff(v)).mean() / v.mean()) for v in late]
            reached[size] = [run.metrics["val/loss"].dropna().iloc[-1] for run in own]
        for ax, label in ((per_epoch, "epoch"), (per_step, "step")):
            ax.set(xlabel=label, ylabel="training loss of the batch")
        per_step.legend(**LEGEND)  # of both: on the left it would lie on a curve
        per_step.set_xscale("log")
        lab.figure(
            "losses",
            figure,
            f"One run of each batch size, the learning rate {self.rate:g} in all: means of "
            f"stretches, on the left of {WINDOW} examples, and the range of eight of ten of their "
            "batches.",
        )
        rows = [
            [size, EXAMPLES // size * self.epochs, spread(noise[size]), spread(reached[size])]
            for size in SIZES
        ]
        columns = ["batch size", "steps", "relative change from step to step", "validation loss"]
        lab.table("what a batch size costs", columns, rows)
        small, middle, large = SIZES[0], SIZES[1], SIZES[-1]
        lab.compare(
            "the loss of single examples jumps, that of whole batches does not",
            noise[small],
            noise[large],
        )
        claim = (
            "at one rate, after equal passes over the data, small batches are ahead of the whole"
        )
        lab.compare(claim, reached[large], reached[middle])
        self._accuracy(lab)

    def _accuracy(self, lab: Lab) -> None:
        given = ["model=mlp", "data=digits", "model.hidden=[32]", "optim=sgd", "trainer.epochs=40"]
        tiny = ["optim.learning_rate=1e-3", "data.batch_size=-1", f"data.limit={EXAMPLES}"]
        (run,) = lab.train("accuracy", over(1, *given, *tiny))
        history = run.metrics
        loss, accuracy = (
            history[f"val/{name}"].dropna().to_numpy() for name in ("loss", "accuracy")
        )
        still = np.diff(accuracy) == 0
        falls = np.diff(loss)[still] < 0
        claim = "accuracy does not move at steps at which the loss does"
        numbers = (
            f"{still.sum()} of {len(still)} steps leave it, the loss falls at {falls.sum()} of them"
        )
        lab.conclude(claim, bool(still.sum() > 5 and falls.mean() > 0.9), numbers)
        figure, (above, below) = panels(["loss", "accuracy"])
        above.plot(loss, **style(0, marks=False))
        below.step(np.arange(len(accuracy)), accuracy, **style(1, marks=False))
        above.set(xlabel="step (whole batches)", ylabel="validation loss")
        below.set(xlabel="step (whole batches)", ylabel="validation accuracy")
        lab.figure(
            "accuracy", figure, "Small steps of whole batches: the loss falls, accuracy has stairs."
        )


def _draw(
    ax: Axes, loss: np.ndarray, stretches: np.ndarray, scale: float, label: str, index: int
) -> None:
    """Draw the mean loss between steps and a band from the 10th to the 90th percentile."""
    parts = np.split(loss, stretches[1:-1])
    at = scale * stretches[1:]
    look = style(index, marks=False)
    low, high = np.array([np.percentile(part, (10, 90)) for part in parts]).T
    ax.plot(at, [part.mean() for part in parts], label=label, **look)
    ax.fill_between(at, low, high, color=look["color"], alpha=0.15)
