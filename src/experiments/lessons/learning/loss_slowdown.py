"""Where a loss learns slowly."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lessons.charts import curves, panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting
from experiments.objectives import losses
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND

RATES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class LossSlowdown(Lesson):
    """Squared error with sigmoid outputs learns slowest where it is most wrong.

    The gradient of the squared error at the input z of a sigmoid is (σ(z) − y) σ'(z), and σ'
    vanishes where the unit is sure, right or wrong. The derivative of the cross-entropy is σ(z) − y
    alone: the more wrong, the steeper. Below, the gradients of this project's own losses, and a
    classifier of digits whose weights are drawn so large that its outputs begin at wrong
    certainties.

    Args:
      epochs: of each run.
      stddev: of the initial weights of the bad start.

    References:
      Nielsen 2015, "Neural networks and deep learning", chapter 3.
    """

    epochs: PositiveInt
    stddev: float

    def run(self, lab: Lab) -> None:
        figure, (at_output, over_epochs) = panels(
            ["gradient of one output, wanted: 1", "bad start"]
        )
        z = jnp.linspace(-8, 8, 161)
        found = {
            "squared error": _slopes(lambda z: losses.mse(jax.nn.sigmoid(z), jnp.ones(1)), z),
            "cross-entropy": _slopes(lambda z: losses.binary_cross_entropy(z, jnp.ones(1)), z),
        }
        error = 1 - np.asarray(jax.nn.sigmoid(z))
        for index, (name, slopes) in enumerate(found.items()):
            at_output.plot(error, slopes, label=name, **style(index, marks=False))
        at_output.set(xlabel="error of the output", ylabel="size of the gradient at z")
        at_output.legend(**LEGEND)
        steepest = {name: error[np.argmax(slopes)] for name, slopes in found.items()}
        squared, entropy = steepest["squared error"], steepest["cross-entropy"]
        lab.conclude(
            "the gradient of the squared error is largest at a middling error, and vanishes at the "
            "largest",
            bool(squared < 0.9 and found["squared error"][0] < 0.01),
            f"largest at {squared:.2f}; {found['squared error'][0]:.2g} at {error[0]:.4f}",
        )
        lab.conclude(
            "the gradient of the cross-entropy is largest where the error is",
            bool(entropy == error.max()),
            f"{found['cross-entropy'][0]:.3f} at an error of {error[0]:.4f}",
        )
        start = ["init=normal", f"init.stddev={self.stddev}", "optim=sgd", "objective.head=sigmoid"]
        shared = ["model.hidden=[]", f"trainer.epochs={self.epochs}", "model=mlp", *start]
        settings = {
            (loss, rate): [*shared, f"loss={loss}", f"optim.learning_rate={rate}"]
            for loss in ("mse", "binary_cross_entropy")
            for rate in RATES
        }
        keyed = {" ".join(map(str, key)): given for key, given in settings.items()}
        runs, names = by_setting(keyed, self.seeds)
        trained = lab.train("bad_start", runs)
        accuracy = np.array([run.metrics["val/accuracy"].dropna().to_numpy() for run in trained])
        best = {}
        for loss, says in (("mse", "squared error"), ("binary_cross_entropy", "cross-entropy")):
            of_rates = {
                rate: accuracy[[name == f"{loss} {rate}" for name in names]] for rate in RATES
            }
            rate = max(of_rates, key=lambda rate: of_rates[rate].mean())
            best[says] = of_rates[rate]
            label = f"{says}, rate {rate:g}"
            lab.table(
                f"validation accuracy with {says}",
                ["rate", "first epoch", "last epoch"],
                [
                    [r, f"{a[:, 0].mean():.3f}", f"{a[:, -1].mean():.3f}"]
                    for r, a in of_rates.items()
                ],
            )
            best[label] = best.pop(says)
        curves(over_epochs, np.arange(1, self.epochs + 1), best)
        over_epochs.set(xlabel="epoch", ylabel="validation accuracy")
        lab.figure(
            "gradients_and_curves",
            figure,
            "Left: at the largest error the squared error has no slope left. Right: each loss with "
            "the best of its rates, mean and deviation over seeds.",
        )
        squared_runs, entropy_runs = best.values()
        claim = "from a bad start cross-entropy is ahead on the way, each at its best rate"
        lab.compare(claim, entropy_runs.mean(axis=1), squared_runs.mean(axis=1))


def _slopes(loss, z: jax.Array) -> np.ndarray:
    return np.asarray(jnp.abs(jax.vmap(jax.grad(lambda z: loss(z[None])))(z)))
