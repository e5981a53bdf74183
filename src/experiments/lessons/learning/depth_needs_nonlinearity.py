"""Deep linear networks."""

from dataclasses import dataclass

import numpy as np

from experiments.lessons.charts import bars, panels
from experiments.lessons.lesson import Lab, Lesson, by_setting, final, inputs_of
from experiments.types import PositiveInt

MARGIN = 0.02  # an accuracy less than this above another counts as no better


@dataclass(frozen=True, kw_only=True)
class DepthNeedsNonlinearity(Lesson):
    """A deep linear network equals one layer.

    Without activations, layers are matrices, and their product is a matrix. The product of a
    trained three-layer linear network gives its outputs, and it classifies no better than a single
    layer. With rectifiers between the same layers it does better.

    Args:
      epochs: of each run.
      rate: learning rate of each run, of Adam.
    """

    epochs: PositiveInt
    rate: float

    def run(self, lab: Lab) -> None:
        given = ["model=mlp", "data=digits", f"trainer.epochs={self.epochs}"]
        given += [f"optim.learning_rate={self.rate}"]
        deep = [*given, "model.hidden=[64,64]"]
        settings = {
            "one layer": [*given, "model.hidden=[]"],
            "three linear": [*deep, "model.activation=identity"],
            "three rectified": [*deep, "model.activation=relu"],
        }
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("trainings", runs)
        accuracy = final(trained, "val/accuracy")
        of = {n: accuracy[[name == n for name in names]] for n in settings}

        linear = trained[names.index("three linear")]
        images = inputs_of(linear, "validation", 100)
        x = np.asarray(linear.prepare(images), np.float64).reshape(len(images), -1)
        matrix, bias = np.eye(x.shape[1]), np.zeros(x.shape[1])
        for layer in ("hidden.0", "hidden.1", "output"):
            kernel = linear.params[f"{layer}.kernel"].astype(np.float64)
            matrix, bias = matrix @ kernel, bias @ kernel + linear.params[f"{layer}.bias"]
        outputs = np.asarray(linear.model(linear.prepare(images)))
        error = np.abs(x @ matrix + bias - outputs).max() / np.abs(outputs).max()
        lab.conclude(
            "the product of the three matrices gives the outputs of the linear network",
            bool(error < 1e-4),
            f"largest difference {error:.1e} of the largest output, 100 images",
        )
        claim = f"three linear layers classify no better than one, by less than {MARGIN}"
        lab.compare(claim, of["one layer"], of["three linear"], margin=MARGIN)
        claim = "with rectifiers between them they classify better"
        lab.compare(claim, of["three rectified"], of["three linear"])
        figure, (ax,) = panels(["accuracy on validation images"], width=5.0)
        bars(ax, of)
        ax.set(ylabel="accuracy", ylim=(min(map(np.min, of.values())) - 0.02, 1.0))
        caption = (
            "Means with ± one deviation over seeds; each dot is a run. The axis is cut off below."
        )
        lab.figure("accuracy", figure, caption)
