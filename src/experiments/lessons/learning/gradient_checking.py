"""Analytic gradients against differences."""

from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import nnx

from experiments import compose
from experiments.core.config import build
from experiments.core.diagnostics.gradients import GradCheck, Report, check_gradients
from experiments.core.rng import root_key
from experiments.lessons.charts import panels
from experiments.lessons.lesson import Lab, Lesson, setup_of
from experiments.models.layers import flatten
from experiments.models.mlp import MLP
from experiments.training.feed import training_examples
from experiments.types import PositiveInt

CONFIGS = {
    "MLP": ["model=mlp", "model.hidden=[16,16]", "model.activation=tanh"],
    "rectified MLP": ["model=mlp", "model.hidden=[16,16]"],
    "LeNet-5": ["model=lenet5"],
    "batch normalisation": ["model=mlp", "model.hidden=[16,16]", "model.norm=batch"],
    "LSTM": ["model=lstm", "data=digits_rows", "model.hidden=16"],
}


@jax.custom_vjp
def wrong_tanh(x: jax.Array) -> jax.Array:
    """Return tanh(x), with a derivative that is 1 − tanh(x), as if a square had been forgotten."""
    return jax.numpy.tanh(x)


wrong_tanh.defvjp(
    lambda x: (jax.numpy.tanh(x), jax.numpy.tanh(x)), lambda y, gradient: (gradient * (1 - y),)
)


class Planted(MLP):
    """A multilayer perceptron with the wrong derivative in its activation."""

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = flatten(x)
        for layer in self.hidden:
            x = wrong_tanh(layer(x))
        return self.output(x)


@dataclass(frozen=True, kw_only=True)
class GradientChecking(Lesson):
    """Backpropagation agrees with differences of the loss, and a wrong derivative shows.

    The gradient of each array of parameters by backpropagation, against central differences of the
    loss in 64 bits, as ‖a − n‖ / (‖a‖ + ‖n‖). Then a network whose tanh has a forgotten square in
    its derivative: it trains, only worse, and nothing but this check says so.

    Args:
      coordinates: entries that are looked at, of each network.

    References:
      Rumelhart, Hinton & Williams 1986; Goodfellow et al. 2016, section 11.5.
    """

    coordinates: PositiveInt

    def run(self, lab: Lab) -> None:
        reports = {name: self._check(overrides) for name, overrides in CONFIGS.items()}
        target = f"model._target_={__name__}.Planted"
        planted = self._check([*CONFIGS["MLP"], target])
        errors = {name: np.array([row.error for row in r.rows]) for name, r in reports.items()}
        errors["planted error"] = np.array([row.error for row in planted.rows])
        figure, (ax,) = panels(["relative error of each array of parameters"], width=6.4)
        for index, values in enumerate(errors.values()):
            shown = np.maximum(values, 1e-12)
            ax.plot(np.full(len(shown), index), shown, "o", color="#24292f", mfc="none", ms=5)
        tolerance = planted.tolerance
        ax.axhline(
            tolerance, color="#c4232b", linewidth=1, linestyle=(0, (2, 2)), label="tolerance"
        )
        ax.set(yscale="log", ylabel="relative error by norm")
        ax.set_xticks(range(len(errors)), [name.replace(" ", "\n", 1) for name in errors])
        ax.legend(frameon=False, fontsize=8)
        caption = "Each circle is an array; those below 1e-12 are drawn there."
        lab.figure("errors", figure, caption)
        worst = {name: values.max() for name, values in errors.items() if name in reports}
        passed = all(row.passed for report in reports.values() for row in report.rows)
        numbers = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
        lab.conclude("every array's gradient agrees with differences", passed, f"worst: {numbers}")
        failed = [row.name for row in planted.rows if not row.passed]
        # the layers before the wrong derivative, not the output behind it
        right = all(name.startswith("hidden") for name in failed) and len(failed) > 0
        says = f"{', '.join(failed)} differ, by up to {errors['planted error'].max():.2f}"
        lab.conclude(
            "a forgotten square in tanh's derivative is caught, where it acts", right, says
        )
        kinks = sum(row.kinks for row in reports["rectified MLP"].rows)
        looked = sum(row.checked for row in reports["rectified MLP"].rows)
        lab.table("kinks", ["network", "entries", "at a kink"], [["rectified MLP", looked, kinks]])

    def _check(self, overrides: list[str]) -> Report:
        setup = setup_of(compose(*overrides))
        wanted: GradCheck = replace(build(setup.config["gradcheck"]), coordinates=self.coordinates)
        key = root_key(setup.config["seed"])
        weights = setup.experiment.init_weights({}, key)
        batch = training_examples(
            setup.splits.train, setup.batch_size, wanted.examples, wanted.seed
        )
        return check_gradients(setup.experiment, weights, batch, key, wanted)
