"""Transfer: what features of one task are worth for another."""

from dataclasses import dataclass

import numpy as np

from experiments.lessons.charts import curves, panels
from experiments.lessons.lesson import Lab, Lesson
from experiments.lessons.networks.few_labels import write_labelled
from experiments.types import PositiveInt

# as many as differ, so that the last layer does not fit the other task and is new
SOURCE, TARGET = range(6), range(6, 10)
EACH = (1, 4, 16)  # labelled images of each class
EARLY = 20  # steps by which the faster start is judged


@dataclass(frozen=True, kw_only=True)
class Transfer(Lesson):
    """Features of another task need fewer labels, are faster, and better.

    A convolutional network learns the digits 0 to 5 and then, from few labelled images, 6 to 9: all
    but its last layer frozen, all of it fine-tuned, and beside them the same network from nothing.
    Several draws of the labelled images for each number of them; the three starts see the same
    draws, so they are compared in pairs, on images that none has seen.

    Args:
      epochs: of the first task.
      steps: of the second one, all labelled images each.

    References:
      Yosinski et al. 2014, "How transferable are features in deep neural networks?".
    """

    epochs: PositiveInt
    steps: PositiveInt

    def run(self, lab: Lab) -> None:
        shared = ["model=cnn", "data=arrays", "data.mean=[0.3]", "data.std=[0.37]"]
        file = lab.directory / "source.npz"
        write_labelled(file, SOURCE, None, 0)
        first = [*shared, f"data.path={file}", f"trainer.epochs={self.epochs}"]
        (source,) = lab.train("source", [first])
        begun = [f"model.pretrained={source.folder}"]
        starts = {
            "from nothing": [],
            "fine-tuned": begun,
            # the last layer alone has far to go: at the rate of the others it does not arrive
            "frozen": [*begun, "freeze=[conv1,conv2,dense1]", "optim.learning_rate=1e-2"],
        }
        shared += [
            "data.batch_size=-1",
            f"trainer.epochs={self.steps}",
            "trainer.checkpoints=false",
        ]
        runs = []
        for draw in range(self.seeds):
            for each in EACH:
                file = lab.directory / f"target_{each}_{draw}.npz"
                write_labelled(file, TARGET, each, draw)
                given = [*shared, f"data.path={file}", f"seed={draw}"]
                runs += [[*given, *start] for start in starts.values()]
        trained = lab.train("target", runs)
        shape = (self.seeds, len(EACH), len(starts), -1)
        curve = np.array([run.metrics["val/accuracy"].dropna().to_numpy() for run in trained])
        curve = curve.reshape(shape)
        of = {name: curve[:, :, index] for index, name in enumerate(starts)}
        labels = np.array(EACH) * len(TARGET)
        figure, (left, right) = panels(["at the end", f"with {labels[1]} labels"], width=4.4)
        curves(left, labels, {name: values[..., -1] for name, values in of.items()})
        left.set(xscale="log", xlabel="labelled images", ylabel="accuracy on unseen images")
        left.set_xticks(labels, list(map(str, labels)))
        left.minorticks_off()
        steps = np.arange(1, self.steps + 1)
        curves(right, steps, {name: values[:, 1] for name, values in of.items()}, marks=False)
        right.set(xscale="log", xlabel="step", ylabel="accuracy on unseen images")
        lab.figure("labels", figure, f"Means with ± one deviation over {self.seeds} draws.")
        self._conclude(lab, of)

    def _conclude(self, lab: Lab, of: dict[str, np.ndarray]) -> None:
        """Compare accuracies [draws, numbers of labels, steps] of each start."""
        fine, frozen, nothing = (of[name] for name in ("fine-tuned", "frozen", "from nothing"))
        for at, each in enumerate(EACH[:-1]):
            more = EACH[at + 1]
            claim = f"fewer labels: fine-tuned with {each} of each class beats {more} from nothing"
            lab.compare(claim, fine[:, at, -1], nothing[:, at + 1, -1], paired=True)
        claim = f"faster: after {EARLY} steps fine-tuned is ahead, over all numbers of labels"
        early = [values[:, :, EARLY - 1].mean(axis=1) for values in (fine, nothing)]
        lab.compare(claim, *early, paired=True)
        for at, each in enumerate(EACH):
            claim = f"better: at the end fine-tuned is ahead, with {each} of each class"
            lab.compare(claim, fine[:, at, -1], nothing[:, at, -1], paired=True)
        claim = "with the fewest labels frozen features are better than fine-tuned ones"
        lab.compare(claim, frozen[:, 0, -1], fine[:, 0, -1], paired=True)
        claim = "with the most labels fine-tuned features are better than frozen ones"
        lab.compare(claim, fine[:, -1, -1], frozen[:, -1, -1], paired=True)
