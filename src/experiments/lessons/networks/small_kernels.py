"""Small kernels in the place of large ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import compose
from experiments.commands.dispatch import as_plain
from experiments.lessons.charts import MARKS, panels
from experiments.lessons.lesson import Lab, Lesson, by_setting, final
from experiments.types import PositiveInt
from experiments.viz.figures import INK, LEGEND
from experiments.viz.layers import Layer, summed
from experiments.viz.pages.statistics import spread
from experiments.viz.summary import summarize

HELD_OUT = "data.validation_fraction=0.35"  # many images, since networks differ by little
POINT = 0.01  # of accuracy: a block that surely loses less is as good
WHOLE = "one 5x5"
BLOCKS = {
    WHOLE: "{conv:{features:16,kernel:5}}",
    "two 3x3": "{conv:{features:16,kernel:5,factorize:smaller}}",
    "1x5 and 5x1": "{conv:{features:16,kernel:5,factorize:asymmetric}}",
    "1x1 to a quarter, 5x5": "{conv:{features:4,kernel:1}},relu,{conv:{features:16,kernel:5}}",
}
# at the place and size of GoogLeNet's inception (3a), whose 5x5 branch has 32 maps behind 16
INCEPTION = {
    "5x5 to 32 maps": "{conv:{features:32,kernel:5}}",
    "two 3x3 to 32 maps": "{conv:{features:32,kernel:3}},{conv:{features:32,kernel:3}}",
    "1x1 to 16 maps, 5x5 to 32": "{conv:{features:16,kernel:1}},{conv:{features:32,kernel:5}}",
    "7x7 to 192 maps": "{conv:{features:192,kernel:7}}",
    "1x7 and 7x1 to 192 maps": "{conv:{features:192,kernel:7,factorize:asymmetric}}",
}


@dataclass(frozen=True, kw_only=True)
class SmallKernels(Lesson):
    """Small kernels do the work of large ones with fewer weights and multiplications.

    Two convolutions of 3x3 see as much as one of 5x5, with 18 weights for 25; 1 x n and n x 1 have
    2 n for n²; and a 1x1 convolution before a 5x5 reduces the channels that this has to read. All
    are counted as `mode=summary` counts, first at the size of GoogLeNet's first inception module,
    then in a small network for digits with two blocks of 16 channels, which is trained with each.
    A block counts as good as another if it surely loses less than a point of accuracy.

    Args:
      examples: of training.
      epochs: of each run.

    References:
      Simonyan & Zisserman 2015, section 2.3; Szegedy et al. 2015, section 4; Szegedy et al. 2016,
      section 3; Lin et al. 2014.
    """

    examples: PositiveInt
    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        _count(lab)
        settings = {name: self._overrides(block) for name, block in BLOCKS.items()}
        layers = {name: convolutions(given) for name, given in settings.items()}
        runs, names = by_setting(settings, self.seeds)
        accuracy = final(lab.train("blocks", runs), "val/accuracy")
        of = {name: accuracy[[given == name for given in names]] for name in settings}
        lab.table(
            "two blocks on digits, 8x8 pixels",
            ["block", "parameters", "multiplications", "receptive field", "accuracy"],
            [
                [
                    name,
                    f"{summed(name, found).parameters:,}",
                    f"{summed(name, found).multiplications:,}",
                    "x".join(map(str, found[-1].receptive_field)),
                    spread(of[name]),
                ]
                for name, found in layers.items()
            ],
        )
        figure, (ax,) = panels(["accuracy against work"], width=6.0)
        for mark, (name, found) in zip(MARKS, layers.items(), strict=False):
            work, values = summed(name, found).multiplications, of[name]
            error = values.std(ddof=1) if self.seeds > 1 else 0.0
            ax.errorbar(
                work, values.mean(), error, fmt=mark, color=INK, mfc="w", capsize=4, label=name
            )
        ax.set(xlabel="multiplications for an image", ylabel="validation accuracy")
        ax.legend(**LEGEND)
        caption = "Means with ± one deviation over seeds. The axis of the accuracy is cut off."
        lab.figure("accuracy", figure, caption)
        whole = layers[WHOLE]
        fields = {found[-1].receptive_field for found in layers.values()}
        shares = {name: _ratio(found, whole) for name, found in layers.items() if name != WHOLE}
        lab.conclude(
            "all three see as many pixels as 5x5, with less work",
            bool(len(fields) == 1 and max(shares.values()) < 1),
            "multiplications: " + ", ".join(f"{n} {share:.0%}" for n, share in shares.items()),
        )
        for name in shares:
            claim = f"{name} in its place costs less than a point of accuracy"
            lab.compare(claim, of[name], of[WHOLE], margin=POINT)
        claim = "the rectifier between two 3x3 makes them more accurate than one 5x5"
        lab.compare(claim, of["two 3x3"], of[WHOLE])

    def _overrides(self, block: str) -> list[str]:
        stem, end = "{conv:{features:16,kernel:3}},relu", "{max_pool:2},flatten,{dense:classes}"
        layers = f"model.layers=[{stem},{block},relu,{block},relu,{end}]"
        shared = ["model=cnn", "data=digits", f"data.limit={self.examples}", HELD_OUT]
        return [*shared, layers, f"trainer.epochs={self.epochs}", "optim.learning_rate=3e-3"]


def _count(lab: Lab) -> None:
    """Count at the published sizes: 28x28 pixels of 192 channels."""
    data = ["data=digits", "data.input_shape=[28,28,192]", "data.mean=null", "data.std=null"]
    end = "global_avg_pool,{dense:classes}"
    found = {
        name: summed(name, convolutions(["model=cnn", *data, f"model.layers=[{block},{end}]"]))
        for name, block in INCEPTION.items()
    }
    lab.table(
        "on 28x28 pixels of 192 channels",
        ["layers", "parameters", "multiplications"],
        [[n, f"{row.parameters:,}", f"{row.multiplications:,}"] for n, row in found.items()],
    )
    counts = [found[name].multiplications for name in INCEPTION]
    whole, _, reduced, square, apart = counts
    lab.conclude(
        "a 1x1 convolution before it takes nine tenths of a 5x5's work, 1x7 and 7x1 take away five "
        "of seven parts of a 7x7's",
        bool((whole, reduced) == (120_422_400, 12_443_648) and apart * 7 == square * 2),
        f"{whole:,} multiplications to {reduced:,}; {square:,} to {apart:,}",
    )


def convolutions(overrides: Sequence[str]) -> list[Layer]:
    """Return the convolutional layers of a config, as `mode=summary` has them."""
    summary = summarize(as_plain(compose(*overrides), Path("summary")))
    return [layer for layer in summary.layers if layer.kind == "convolutional"]


def _ratio(some: Sequence[Layer], whole: Sequence[Layer]) -> float:
    """Return the multiplications of some layers as a share of others'."""
    return summed("", some).multiplications / summed("", whole).multiplications
