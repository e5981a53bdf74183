"""A first layer that whitens patches of the images, by filters that follow from the data."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from numpy.lib.stride_tricks import sliding_window_view

from experiments.ops import convolution

CHUNK = 256  # images at a time, whose patches fit into a processor's cache of tens of MiB


class OfData(nnx.Variable):
    """State that follows from the training data and stays as it is."""


class Whitening(nnx.Module):
    """Patches of an image in the coordinates in which those of the data are uncorrelated.

    [batch, H, W, C] to [batch, H − h + 1, W − w + 1, 2 h w C]: the projections on the eigenvectors
    of the patches' covariance, each divided by √(eigenvalue + `epsilon`), the same with their signs
    changed, plus a bias, which alone is trained (Jordan 2024, arXiv:2404.00498, section 3.2). The
    filters are 0 until those of `whitening_kernel` take their place.
    """

    def __init__(self, channels: int, kernel_size: Sequence[int]):
        features = 2 * channels * int(np.prod(kernel_size))
        self.kernel = OfData(np.zeros((*kernel_size, channels, features), np.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        return convolution.conv(x, kernel, strides=1, padding="VALID") + self.bias[...]


def whitening_kernel(images: np.ndarray, size: Sequence[int], epsilon: float) -> np.ndarray:
    """The filters [h, w, C, 2 h w C] for images float32 [N, H, W, C] as a model sees them.

    Every patch of `size` (h, w) counts, and is taken to have mean 0, as normalised pixels have.
    """
    values = int(np.prod(size)) * images.shape[-1]
    covariance, count = np.zeros((values, values)), 0
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        windows = np.moveaxis(sliding_window_view(chunk, size, axis=(1, 2)), 3, 5)
        patches = windows.reshape(-1, values)  # [N H' W', h w C]
        covariance += patches.T @ patches
        count += len(patches)
    eigenvalues, vectors = np.linalg.eigh(covariance / count)
    filters = vectors / np.sqrt(np.maximum(eigenvalues, 0) + epsilon)
    both = np.concatenate([filters, -filters], axis=1)
    return both.reshape(*size, images.shape[-1], -1).astype(np.float32)
