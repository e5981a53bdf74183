"""Searching hyperparameters."""

from dataclasses import dataclass

import numpy as np

from experiments.lessons.charts import curves, panels
from experiments.lessons.lesson import Lab, Lesson, final
from experiments.types import PositiveInt
from experiments.viz.figures import INK

SIDE = 16  # of the table of trials that searches draw from
RATES, DECAYS = np.logspace(-5, 0, SIDE), np.logspace(-6, 0, SIDE)
GRIDS = (2, 3, 4)  # sides of grids; random searches have as many trials
FACTOR = 0.5  # by which a round narrows each log range


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Lesson):
    """Random search beats a grid where one axis matters most; choosing by a split flatters it.

    A network is trained once for each of 16 x 16 pairs of a learning rate and a weight decay,
    evenly spaced on log axes. Searches are then drawn from this table: grids with a random offset,
    random ones, and rounds that halve the range around the best. The rate matters far more than the
    decay, so a grid of 4 x 4 tries four values of what matters, 16 random trials try 16.

    Args:
      epochs: of each run.
      examples: of training; few, so that splits are noisy.
      searches: drawn for each budget.

    References:
      Bergstra & Bengio 2012, "Random search for hyper-parameter optimization".
    """

    epochs: PositiveInt
    examples: PositiveInt
    searches: PositiveInt

    def run(self, lab: Lab) -> None:
        shared = [
            "model=mlp",
            "data=digits",
            "model.hidden=[32]",
            "optim=adamw",
            "data.batch_size=50",
        ]
        shared += [f"data.limit={self.examples}", f"trainer.epochs={self.epochs}"]
        shared += ["data.batch_size=50", "trainer.checkpoints=false"]
        settings = [
            [*shared, f"optim.learning_rate={rate:.4g}", f"optim.weight_decay={decay:.4g}"]
            for rate in RATES
            for decay in DECAYS
        ]
        trained = lab.train("table", settings)
        shape = (SIDE, SIDE)
        validation = np.nan_to_num(final(trained, "val/accuracy")).reshape(shape)
        test = np.array([run.summary.get("test/accuracy", np.nan) for run in trained]).reshape(
            shape
        )
        rng = np.random.default_rng(0)
        found = {
            name: np.array(
                [[search(validation, n, rng) for n in GRIDS] for _ in range(self.searches)]
            )
            for name, search in (("grid", _grid), ("random", _random), ("narrowing", _narrowing))
        }
        figure, (table, ax) = panels(["validation accuracy of all trials", "best found"], width=4.4)
        shown = table.pcolormesh(DECAYS, RATES, validation, cmap="Greys_r", shading="nearest")
        table.set(xscale="log", yscale="log", xlabel="weight decay", ylabel="learning rate")
        table.grid(False)
        figure.colorbar(shown, ax=table, label="accuracy")
        budgets = np.array(GRIDS) ** 2
        curves(ax, budgets, found)
        ax.axhline(validation.max(), color=INK, linewidth=1, linestyle=(0, (2, 2)))
        ax.set(xlabel="trials", ylabel="validation accuracy of the best", xticks=budgets)
        caption = (
            f"Right: mean and deviation of {self.searches} searches; the line is the best of all."
        )
        lab.figure("searches", figure, caption)
        spans = [np.ptp(validation.mean(axis=axis)) for axis in (1, 0)]
        numbers = (
            f"averages move by {spans[0]:.2f} along the rate, by {spans[1]:.2f} along the decay"
        )
        lab.conclude(
            "the learning rate matters more than the weight decay", spans[0] > spans[1], numbers
        )
        for at, side in enumerate(GRIDS):
            claim = f"{side**2} random trials find a better one than a grid of {side} x {side}"
            lab.compare(claim, found["random"][:, at], found["grid"][:, at])
        claim = "16 trials in rounds that narrow find a better one than 16 random ones"
        lab.compare(claim, found["narrowing"][:, -1], found["random"][:, -1])
        # the best of 16 by the test split itself, against its accuracy where validation chooses
        flattery = np.array([_flattery(validation, test, rng) for _ in range(self.searches)])
        claim = (
            "choosing by the test split flatters: it reads higher than of a trial chosen without it"
        )
        lab.compare(claim, flattery[:, 0], flattery[:, 1])


def _grid(table: np.ndarray, side: int, rng: np.random.Generator) -> float:
    step = SIDE // side
    rows, columns = (rng.integers(step) + step * np.arange(side) for _ in range(2))
    return float(table[np.ix_(rows, columns)].max())


def _random(table: np.ndarray, side: int, rng: np.random.Generator) -> float:
    return float(table[tuple(rng.integers(SIDE, size=(2, side**2)))].max())


def _narrowing(table: np.ndarray, side: int, rng: np.random.Generator) -> float:
    """Search in `side` rounds of `side` trials, each over half the log range around the best."""
    low, width, best, at = np.zeros(2), float(SIDE), -1.0, np.zeros(2)
    for _ in range(side):
        for point in (low + width * rng.uniform(size=(side, 2))).astype(int):
            if table[tuple(point)] > best:
                best, at = float(table[tuple(point)]), point
        width *= FACTOR
        low = np.clip(at + 0.5 - width / 2, 0, SIDE - width)
    return best


def _flattery(validation: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> list[float]:
    chosen = tuple(rng.integers(SIDE, size=(2, 16)))
    return [float(np.nanmax(test[chosen])), float(test[chosen][validation[chosen].argmax()])]
