"""What depth costs, and what carries a signal through many layers."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from optax import softmax_cross_entropy

from experiments.cli.python import Run
from experiments.core.transfer import named
from experiments.lessons.charts import bars, curves, panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting, final, untrained
from experiments.types import PositiveInt
from experiments.viz.figures import LEGEND
from experiments.viz.pages.statistics import spread

BATCH = 128  # images of a gradient
POINT = 0.01  # of accuracy: a network that surely loses less is as good
SMALL = ["data=digits", "data.resize=false", "model.widths=[8,16,32]"]
NETWORKS = {
    "plain, 20": ["model=plain20", *SMALL],
    "plain, 56": ["model=plain56", *SMALL],
    "residual, 20": ["model=resnet20", *SMALL],
    "residual, 56": ["model=resnet56", *SMALL],
}
DENSE = ["model=densenet_bc_100_12", "data=digits", "data.resize=false", "model.dropout=0.0"]
DENSE += ["model.blocks=[4,4,4]", "model.growth_rate=6", "model.initial=12"]
MODULE = "[8,8,16,4,8,8]"  # widths of an inception module's branches, 40 channels together
INCEPTION = ["model=googlenet", "data=digits", "data.resize=false", "model.stem=[16,16,32]"]
INCEPTION += [f"model.modules=[[{MODULE}],[{MODULE},{MODULE},{MODULE},{MODULE}],[{MODULE}]]"]
INCEPTION += ["model.auxiliary_hidden=64", "model.dropout=0.0", "model.auxiliary_dropout=0.0"]


@dataclass(frozen=True, kw_only=True)
class Depth(Lesson):
    """Plain networks become worse with depth, and shortcuts of several kinds take that away.

    Plain and residual networks of 20 and 56 layers, the loss on their training images, and the
    gradient of each layer at the initial weights. GoogLeNet with and without its two auxiliary
    classifiers. DenseNet, in which each layer reads all before it, against a residual network by
    parameters.

    All is shrunk for digits of 8x8 pixels as they are: the residual and plain networks have half of
    the published channels (8, 16, 32), GoogLeNet six of its nine modules, with 40 channels each,
    DenseNet three blocks of four layers with growth rate 6; nothing drops out.

    Args:
      examples: of training.
      epochs: of each run.

    References:
      He et al. 2016, "Deep residual learning for image recognition", section 4.2; Szegedy et al.
      2015; Huang et al. 2017.
    """

    examples: PositiveInt
    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        deep, accuracy = self._residual(lab)
        self._auxiliary(lab)
        self._dense(lab, deep, accuracy)

    @property
    def _shared(self) -> list[str]:
        return [f"data.limit={self.examples}", f"trainer.epochs={self.epochs}"]

    def _residual(self, lab: Lab) -> tuple[Run, np.ndarray]:
        """Train plain and residual networks; return the shallow residual one, and its accuracy."""
        momentum = ["optim=momentum", "optim.learning_rate=0.05"]
        settings = {name: [*g, *self._shared, *momentum] for name, g in NETWORKS.items()}
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("residual", runs)
        by_name = {n: [r for r, m in zip(trained, names, strict=True) if m == n] for n in settings}
        losses = {name: final(own, "train/epoch_loss") for name, own in by_name.items()}
        norms = {name: _norms_of(own) for name, own in by_name.items()}
        figure, (above, below) = panels(["training loss", "gradient, initial weights"], width=5.0)
        epochs = np.arange(1, self.epochs + 1)
        history = {
            name: [run.metrics["train/epoch_loss"].dropna().to_numpy() for run in own]
            for name, own in by_name.items()
        }
        curves(above, epochs, history, marks=False)
        above.set(xlabel="epoch", ylabel="loss", yscale="log")
        for index, (name, values) in enumerate(norms.items()):
            mean = np.exp(np.log(values).mean(axis=0))
            below.plot(np.arange(1, len(mean) + 1), mean, label=name, **style(index, marks=False))
        below.set(
            xlabel="convolution, from the input on", ylabel="norm of its gradient", yscale="log"
        )
        below.legend(**LEGEND)
        caption = (
            f"Left: mean and deviation over {self.seeds} seeds. Right: geometric means over seeds, "
            f"at the first {BATCH} images."
        )
        lab.figure("residual", figure, caption)
        apart = {name: np.log10(v.max(axis=1) / v.min(axis=1)) for name, v in norms.items()}
        accuracy = {name: final(own, "val/accuracy") for name, own in by_name.items()}
        columns = ["network", "training loss", "validation accuracy"]
        columns += ["largest over smallest gradient, decades"]
        rows = [[n, *(spread(v[n]) for v in (losses, accuracy, apart))] for n in settings]
        lab.table("at the end of training, and gradients at its start", columns, rows)
        claim = "without shortcuts 56 layers end at a higher training loss than 20"
        lab.compare(claim, losses["plain, 56"], losses["plain, 20"])
        claim = "with shortcuts 56 layers lose less by their depth than without"
        extra = {k: losses[f"{k}, 56"] - losses[f"{k}, 20"] for k in ("plain", "residual")}
        lab.compare(claim, extra["plain"], extra["residual"])
        claim = "at the start the gradient differs more between the layers of the plain network"
        lab.compare(claim, apart["plain, 56"], apart["residual, 56"])
        return by_name["residual, 20"][0], accuracy["residual, 20"]

    def _auxiliary(self, lab: Lab) -> None:
        """Train GoogLeNet with and without auxiliary classifiers."""
        weights = {"without": "0.0", "with": "0.3"}
        settings = {
            name: [*INCEPTION, *self._shared, f"model.auxiliary_weight={w}"]
            for name, w in weights.items()
        }
        runs, names = by_setting(
            {n: [*g, "trainer.diagnostics=true"] for n, g in settings.items()}, self.seeds
        )
        trained = lab.train("auxiliary", runs)
        by_name = {n: [r for r, m in zip(trained, names, strict=True) if m == n] for n in settings}
        first = "diagnostics/conv1.conv/grad_norm"
        norms = {n: [r.metrics[first].dropna().iloc[0] for r in own] for n, own in by_name.items()}
        accuracy = {name: final(own, "val/accuracy") for name, own in by_name.items()}
        figure, (left, right) = panels(
            ["gradient of the first layer, initial weights", "accuracy"], width=4.0
        )
        bars(left, norms)
        left.set_ylabel("norm")
        bars(right, accuracy)
        right.set_ylabel("validation accuracy")
        caption = "GoogLeNet with and without its auxiliary classifiers; every run is a dot."
        lab.figure("auxiliary", figure, caption)
        claim = "auxiliary classifiers give the first layer of GoogLeNet a larger gradient"
        lab.compare(claim, norms["with"], norms["without"], paired=True)
        claim = "they make it more accurate"
        lab.compare(claim, accuracy["with"], accuracy["without"])

    def _dense(self, lab: Lab, residual: Run, accuracy: np.ndarray) -> None:
        """Train DenseNet, and compare it with the residual network."""
        momentum = ["optim=momentum", "optim.learning_rate=0.05"]
        runs, _ = by_setting({"DenseNet": [*DENSE, *self._shared, *momentum]}, self.seeds)
        dense = lab.train("dense", runs)
        reached = final(dense, "val/accuracy")
        sizes = [sum(array.size for array in run.params.values()) for run in (dense[0], residual)]
        rows = [
            ["DenseNet-BC, 28 layers", f"{sizes[0]:,}", spread(reached)],
            ["residual, 20 layers", f"{sizes[1]:,}", spread(accuracy)],
        ]
        lab.table("parameters", ["network", "parameters", "validation accuracy"], rows)
        lab.conclude(
            "DenseNet has less than half of the residual network's parameters",
            sizes[0] < sizes[1] / 2,
            f"{sizes[0]:,} against {sizes[1]:,}",
        )
        lab.compare("it loses less than a point of accuracy", reached, accuracy, margin=POINT)


def _norms_of(runs: list[Run]) -> np.ndarray:
    """Return the norm of the gradient of each 3x3 convolution at the initial weights, [runs, n]."""
    split: Any = runs[0].splits.train  # in memory
    images = split.arrays
    x = runs[0].prepare(images["image"][:BATCH])
    labels = jax.nn.one_hot(images["label"][:BATCH], 10)
    models = [untrained(run.config) for run in runs]
    graph = nnx.graphdef(models[0])

    @jax.jit  # once for all of them
    @jax.grad
    def gradient(params: Any, rest: Any) -> jax.Array:
        logits = nnx.merge(graph, params, rest, copy=True)(x)  # of this trace: statistics move
        return jnp.mean(softmax_cross_entropy(logits, labels))

    states = [nnx.split(model, nnx.Param, ...)[1:] for model in models]
    grads = (named(nnx.to_pure_dict(gradient(*state))) for state in states)
    return np.array([norms_of_convolutions(grad) for grad in grads])


def norms_of_convolutions(grads: dict[str, jax.Array]) -> list[float]:
    """Return the norm of the gradient of each convolution of a `ResNet`, from the input on.

    Blocks in a loop, whose weights are one array, count each by itself.

    Args:
      grads: by the name of the parameter.
    """
    kernels = {name: np.asarray(grad) for name, grad in grads.items()}
    found = [kernels["conv.kernel"]]
    blocks: dict[str, list[np.ndarray]] = {}
    for name, kernel in kernels.items():
        block, convolution, own = name.partition(".convs.")
        if convolution and own.endswith("kernel"):
            blocks.setdefault(block, []).append(kernel)
    for name, convs in blocks.items():
        turns = zip(*convs, strict=True) if name.endswith(".block") else [convs]
        found += [kernel for turn in turns for kernel in turn]
    return [float(np.linalg.norm(kernel)) for kernel in found]
