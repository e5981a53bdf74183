"""Convolution: what it costs, what it shares, what it is blind to."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from experiments.lessons.charts import bars, panels
from experiments.lessons.lesson import Lab, Lesson, by_setting, final
from experiments.lessons.networks.few_labels import digits
from experiments.models.layers import Conv, Dense
from experiments.types import PositiveInt

KERNELS: dict[str, ArrayLike] = {
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "vertical edges": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
    "horizontal edges": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
    "Laplace": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
}


INIT: dict[str, Any] = {  # of layers whose weights are counted, or set afterwards
    "kernel_init": lambda key, shape, dtype: jnp.zeros(shape, dtype),
    "rngs": SimpleNamespace(params=lambda: None),
}


def correlate(image: np.ndarray, kernel: ArrayLike) -> np.ndarray:
    """Return what a convolutional layer of one kernel [3, 3] makes of an image [H, W]."""
    layer = Conv(1, 1, (3, 3), **INIT)
    layer.kernel[...] = jnp.asarray(kernel, jnp.float32)[:, :, None, None]
    return np.asarray(layer(jnp.asarray(image, jnp.float32)[None, :, :, None]))[0, :, :, 0]


@dataclass(frozen=True, kw_only=True)
class Convolution(Lesson):
    """A convolution shares few weights over all places, follows shifts, and needs neighbours.

    Counts of parameters and multiplications against the formulas; the layer is a correlation, and a
    convolution with the kernel turned; it commutes with shifts, and pooling forgets small ones;
    edge kernels on a digit; and the accuracy of a dense and of a convolutional network on digits
    whose pixels are shuffled, all in the same way.

    Args:
      epochs: of each run.

    References:
      LeCun et al. 1998; Goodfellow et al. 2016, chapter 9.
    """

    epochs: PositiveInt

    def run(self, lab: Lab) -> None:
        self._counts(lab)
        self._shifts(lab)
        self._shuffled(lab)

    def _counts(self, lab: Lab) -> None:
        height = width = 512
        multiplications = height * width * 3 * 3 * 3
        wide, small = _parameters(7, 1, 64), _parameters(5, 3, 10)
        dense = Dense(32 * 32 * 3, 10, **INIT).kernel[...].size + 10
        rows = [
            ["a 3x3 kernel over 512x512 RGB, multiplications", f"{multiplications:,}"],
            ["64 kernels of 7x7 on one channel, parameters", f"{wide:,}"],
            ["10 kernels of 5x5 on 32x32x3, parameters", f"{small:,}"],
            ["a dense layer of 10 units on 32x32x3, parameters", f"{dense:,}"],
        ]
        lab.table("counts", ["layer", "number"], rows)
        right = (multiplications, wide, small) == (7_077_888, 3_200, 760)
        claim = "the layers have the parameters and multiplications of the formulas"
        lab.conclude(claim, right, f"{multiplications:,}; {wide:,}; {small:,}")

    def _shifts(self, lab: Lab) -> None:
        rng = np.random.default_rng(0)
        image, kernel = rng.normal(size=(16, 16)), rng.normal(size=(3, 3))
        turned = kernel[::-1, ::-1]
        # a convolution by its definition, through the Fourier transform of padded arrays
        size = (18, 18)
        product = np.fft.rfft2(image, size) * np.fft.rfft2(kernel, size)
        convolved = np.fft.irfft2(product, size)[1:-1, 1:-1]
        error = np.abs(correlate(image, turned) - convolved).max()
        differs = np.abs(correlate(image, kernel) - convolved).max()
        lab.conclude(
            "the layer is a correlation, and a convolution with the kernel turned by half a turn",
            bool(error < 1e-4 < differs),
            f"largest difference {error:.1e} with the kernel turned, {differs:.2g} as it is",
        )
        inner = slice(3, -3)
        moved = np.roll(image, 2, axis=1)
        equal = correlate(moved, kernel)[inner, inner]
        shifted = np.roll(correlate(image, kernel), 2, axis=1)[inner, inner]
        lab.conclude(
            "a shifted image gives the shifted result (equivariance), away from the border",
            bool(np.abs(equal - shifted).max() < 1e-4),
            f"largest difference {np.abs(equal - shifted).max():.1e}",
        )
        pictures = digits("train")[0][:100, :, :, 0]
        alike: dict[int, list[float]] = {1: [], 2: []}  # by the side of the window
        for image in pictures:
            maps = [correlate(x, KERNELS["Laplace"]) for x in (image, np.roll(image, 1, axis=1))]
            for window, values in alike.items():
                pooled = [_pooled(found, window).ravel() for found in maps]
                values.append(float(np.corrcoef(np.stack(pooled))[0, 1]))
        claim = "after max pooling the maps of a digit and of its shift by a pixel are more alike"
        lab.compare(claim, alike[2], alike[1], paired=True)
        figure, axes = panels(list(KERNELS), width=2.2, height=2.3)
        for ax, edges in zip(axes, KERNELS.values(), strict=True):
            shown = ax.imshow(correlate(pictures[0], edges), cmap="Greys")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            figure.colorbar(shown, ax=ax, shrink=0.7)
        lab.figure("edges", figure, "A digit, and what three kernels find in it.")

    def _shuffled(self, lab: Lab) -> None:
        shared = ["data=arrays", f"trainer.epochs={self.epochs}"]
        models = {
            "dense": ["model=mlp", "model.hidden=[64]"],
            "convolutional": ["model=lenet5", "model.activation=relu", "model.pooling=max"],
        }
        images, labels = digits("train")
        order = np.random.default_rng(0).permutation(images[0].size)
        of: dict[str, np.ndarray] = {}
        for kind in ("ordered", "shuffled"):
            x = images
            if kind == "shuffled":
                x = images.reshape(len(images), -1)[:, order].reshape(images.shape)
            file = lab.directory / f"{kind}.npz"
            np.savez(file, x=x, y=labels)
            settings = {m: [*shared, f"data.path={file}", *given] for m, given in models.items()}
            runs, names = by_setting(settings, self.seeds)
            accuracy = final(lab.train(kind, runs), "val/accuracy")
            of |= {f"{m}, {kind}": accuracy[[n == m for n in names]] for m in models}
        figure, (ax,) = panels(["accuracy on validation images"], width=5.6)
        bars(ax, of)
        ax.set(ylabel="accuracy", ylim=(min(map(np.min, of.values())) - 0.05, 1.0))
        caption = "Means with ± one deviation over seeds. The axis is cut off below."
        lab.figure("shuffled", figure, caption)
        claim = "shuffling the pixels costs the convolutional network accuracy"
        lab.compare(claim, of["convolutional, ordered"], of["convolutional, shuffled"])
        lost = {m: of[f"{m}, ordered"] - of[f"{m}, shuffled"] for m in models}
        claim = "it costs the convolutional network more than the dense one"
        lab.compare(claim, lost["convolutional"], lost["dense"])


def _parameters(side: int, channels: int, kernels: int) -> int:
    layer = Conv(channels, kernels, (side, side), **INIT)
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param)))


def _pooled(image: np.ndarray, window: int) -> np.ndarray:
    rows, columns = (side // window for side in image.shape)
    return image.reshape(rows, window, columns, window).max(axis=(1, 3))
