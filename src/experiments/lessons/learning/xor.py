"""Exclusive or, with and without a hidden layer."""

from dataclasses import dataclass

import numpy as np

from experiments.lessons.lesson import Lab, Lesson, by_setting, final
from experiments.types import PositiveInt
from experiments.viz.figures import INK, one_panel, plain_axes


@dataclass(frozen=True, kw_only=True)
class Xor(Lesson):
    """A perceptron cannot do exclusive or, a network with one hidden layer can.

    No line has (0, 0) and (1, 1) on one side, (0, 1) and (1, 0) on the other, so a single layer of
    threshold units gets at most three of the four corners right, whatever rule it learns by. Two
    lines do it, and a hidden layer has them.

    Args:
      epochs: of each run.

    References:
      Rosenblatt 1958; Minsky & Papert 1969; Rumelhart, Hinton & Williams 1986.
    """

    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        given = ("data=xor", f"trainer.epochs={self.epochs}")
        rule = ("loss=mse", "optim=sgd", "optim.learning_rate=0.1")
        hidden = ("model=mlp", "model.hidden=[8]", "model.activation=tanh")
        settings = {
            "Rosenblatt's rule": [*given, "model=perceptron", *rule],
            "gradient descent": [*given, "model=mlp", "model.hidden=[]", "optim.learning_rate=0.1"],
            "one hidden layer": [*given, *hidden, "optim.learning_rate=0.05"],
        }
        runs, names = by_setting(settings, self.seeds)
        accuracy = final(lab.train("trainings", runs), "val/accuracy")
        of = {n: accuracy[[name == n for name in names]] for n in settings}
        for name in ("Rosenblatt's rule", "gradient descent"):
            best = of[name].max()
            claim = f"a single layer by {name} never gets all four corners right"
            lab.conclude(claim, bool(best <= 0.75), f"at most {best:.2f} in {self.seeds} seeds")
        claim = "a network with one hidden layer learns it from more than half of the starts"
        lab.compare(claim, np.array(of["one hidden layer"] == 1, float), 0.5)
        figure, ax = one_panel(5.6, 3.2, "accuracy on the four corners, each seed")
        plain_axes(ax)
        for index, values in enumerate(of.values()):
            offsets = np.linspace(-0.2, 0.2, len(values))
            ax.plot(index + offsets, np.sort(values), "o", mfc="none", color=INK, ms=5)
        ax.axhline(0.75, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        ax.set_xticks(range(len(of)), list(of))
        ax.set(ylabel="accuracy", ylim=(0, 1.05))
        caption = "Every circle is a run; the line is three corners of four."
        lab.figure("accuracy", figure, caption)
