"""What stands behind the convolutions, and what AlexNet needed to learn with it."""

from dataclasses import dataclass

import numpy as np

from experiments.core.params import count_parameters
from experiments.lessons.charts import bars, panels
from experiments.lessons.lesson import Lab, Lesson, by_setting, final
from experiments.types import PositiveInt
from experiments.viz.pages.statistics import spread

CONVS = "{conv:{features:16,kernel:3}},relu,{max_pool:2},{conv:{features:32,kernel:3}},relu"
HEADS = {
    "global average": "{conv:{features:classes,kernel:1}},global_avg_pool",
    "dense": "flatten,{dense:64},relu,{dense:64},relu,{dense:classes}",
}
LRN, DROPOUT = "{lrn:{size:5}}", "{dropout:0.5}"
ALEXNET = (
    "{conv:{features:16,kernel:5}},relu,LRN{max_pool:{window:3,stride:2,padding:1}},"
    "{conv:{features:32,kernel:3}},relu,LRN{max_pool:{window:3,stride:2,padding:1}},"
    "flatten,{dense:128},relu,DROPOUT{dense:128},relu,DROPOUT{dense:classes}"
)
AUGMENTED, CROPS = ["data.augment.crop_padding=1"], ["eval.tta=five_crop"]


@dataclass(frozen=True, kw_only=True)
class Heads(Lesson):
    """A head without weights overfits less, and each of AlexNet's remedies helps its dense one.

    Two convolutions with a head of three dense layers, or with a 1x1 convolution to a map for each
    class and the mean of the map. Then a small AlexNet: two convolutions with local response
    normalisation, overlapping pooling, dense layers with dropout, random crops in training, and the
    mean prediction over crops; and the same with one of these switched off, the random crops
    together with the averaged ones.

    The crops are those of images with a border of one pixel. AlexNet's ten crops are five and their
    mirror images. A mirrored digit is another sign, so five are averaged here; the table has ten,
    too.

    Args:
      examples: of training.
      epochs: of each run.

    References:
      Lin, Chen & Yan 2014, section 3.2; Krizhevsky, Sutskever & Hinton 2012, sections 3.3 and 4.
    """

    examples: PositiveInt
    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        self._heads(lab)
        self._alexnet(lab)

    @property
    def _shared(self) -> list[str]:
        shared = ["model=cnn", "data=digits", f"data.limit={self.examples}"]
        return [*shared, f"trainer.epochs={self.epochs}"]

    def _heads(self, lab: Lab) -> None:
        shared = [*self._shared, "optim.learning_rate=1e-2"]
        settings = {n: [*shared, f"model.layers=[{CONVS},{h}]"] for n, h in HEADS.items()}
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("heads", runs)
        of = {n: [r for r, m in zip(trained, names, strict=True) if m == n] for n in settings}
        gaps = {n: final(own, "val/loss") - final(own, "train/epoch_loss") for n, own in of.items()}
        accuracy = {name: final(own, "val/accuracy") for name, own in of.items()}
        sizes = {name: count_parameters(own[0].params) for name, own in of.items()}
        columns = ["head", "parameters", "validation minus training loss", "validation accuracy"]
        rows = [[n, f"{sizes[n]:,}", spread(gaps[n]), spread(accuracy[n])] for n in settings]
        lab.table("two heads behind the same convolutions", columns, rows)
        figure, (left, right) = panels(["validation minus training loss", "accuracy"], width=4.0)
        bars(left, gaps)
        left.set_ylabel("loss")
        bars(right, accuracy)
        right.set(ylabel="validation accuracy", ylim=(_floor(accuracy), None))
        caption = "Means with ± one deviation over seeds; the axis on the right is cut off below."
        lab.figure("heads", figure, caption)
        average, dense = HEADS
        claim = "with the global average the gap between validation and training loss is smaller"
        lab.compare(claim, gaps[dense], gaps[average])
        claim = "the network with the global average, with fewer weights, is more accurate"
        lab.compare(claim, accuracy[average], accuracy[dense])

    def _alexnet(self, lab: Lab) -> None:
        def layers(lrn: str = f"{LRN},", dropout: str = f"{DROPOUT},") -> str:
            return f"model.layers=[{ALEXNET.replace('LRN', lrn).replace('DROPOUT', dropout)}]"

        settings = {
            "all": [layers(), *AUGMENTED, *CROPS],
            "augmentation and crops": [layers()],
            "dropout": [layers(dropout=""), *AUGMENTED, *CROPS],
            "response normalisation": [layers(lrn=""), *AUGMENTED, *CROPS],
            "crops": [layers(), *AUGMENTED],
            "ten crops": [layers(), *AUGMENTED, "eval.tta=ten_crop"],
        }
        shared = [*self._shared, "optim.learning_rate=3e-3"]
        runs, names = by_setting({n: [*shared, *g] for n, g in settings.items()}, self.seeds)
        trained = lab.train("alexnet", runs)
        of = {n: [r for r, m in zip(trained, names, strict=True) if m == n] for n in settings}
        accuracy = {name: final(own, "val/accuracy") for name, own in of.items()}
        losses = {name: final(own, "val/loss") for name, own in of.items()}
        labels = {n: n if n in ("all", "ten crops") else f"without {n}" for n in settings}
        columns = ["small AlexNet", "validation loss", "validation accuracy"]
        rows = [[labels[n], spread(losses[n]), spread(accuracy[n])] for n in settings]
        lab.table("what each part gives", columns, rows)
        titles = ["a small AlexNet, one part switched off", "mean prediction over"]
        figure, (left, right) = panels(titles, width=5.2)
        bars(left, {labels[name]: accuracy[name] for name in accuracy if name != "ten crops"})
        crops = {"one image": "crops", "five crops": "all", "ten crops": "ten crops"}
        bars(right, {what: accuracy[name] for what, name in crops.items()})
        for ax in (left, right):
            ax.set(ylabel="validation accuracy", ylim=(_floor(accuracy), 1.0))
        caption = (
            "Means with ± one deviation over seeds, every run a dot; the axes are cut off below. "
            "The right panel is of the whole small AlexNet."
        )
        lab.figure("alexnet", figure, caption)
        for name in ("dropout", "response normalisation", "crops"):
            what = "averaging five crops" if name == "crops" else name
            lab.compare(f"{what} makes it more accurate", accuracy["all"], accuracy[name])
        # both without the mean over crops, whose borders only augmented images have had in training
        claim = "augmentation makes it more accurate"
        lab.compare(claim, accuracy["crops"], accuracy["augmentation and crops"])
        claim = "averaging mirror images of digits, too, makes it less accurate"
        lab.compare(claim, accuracy["all"], accuracy["ten crops"])


def _floor(groups: dict[str, np.ndarray]) -> float:
    return float(min(map(np.min, groups.values()))) - 0.02
