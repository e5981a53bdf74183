"""Initializers of weights, which the files in `conf/init` name.

An initializer is a function `(key, shape, dtype) -> array`, like those of `jax.nn.initializers`,
which a config can name too. The ones here have their names and arguments, but draw on the host with
NumPy, so that no program has to be compiled for each shape of a network's weights.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from experiments.types import Initializer

Shape = tuple[int, ...]

STDDEV_WITHIN_TWO = 0.87962566103423978  # of a standard normal variable cut off at ±2


def constant(value: float) -> Initializer:
    """Return an initializer that makes all weights `value`."""

    return _on_host(lambda _, shape: np.full(shape, value))


def uniform(low: float, high: float) -> Initializer:
    """Return an initializer that draws from U[low, high)."""

    return _on_host(lambda rng, shape: low + (high - low) * rng.random(shape, np.float32))


def normal(stddev: float) -> Initializer:
    """Return an initializer that draws from N(0, stddev²)."""

    return _on_host(lambda rng, shape: rng.standard_normal(shape, np.float32) * stddev)


def truncated_normal(stddev: float, lower: float, upper: float) -> Initializer:
    """Return an initializer that draws from N(0, 1) between `lower` and `upper`, times `stddev`."""

    from scipy import special  # takes a fifth of a second, and few networks need it

    ends = special.ndtr(lower), special.ndtr(upper)
    return _on_host(lambda rng, shape: special.ndtri(rng.uniform(*ends, shape)) * stddev)


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"],
    distribution: Literal["normal", "uniform", "truncated_normal"],
) -> Initializer:
    """Return an initializer whose draws have mean 0 and variance scale / n.

    Args:
      scale: 1 suits linear units, 2 rectifiers.
      mode: n is the number of inputs of a unit, of the units that see an output, or the
        (geometric) mean of the two. The last two axes of a kernel are inputs and outputs, those
        before them are the window of a convolution.
      distribution: normal, uniform, or normal cut off at two standard deviations.

    References:
      Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural
      networks"; He et al. 2015, "Delving deep into rectifiers", arXiv:1502.01852.
    """

    def init(key: jax.Array, shape: Shape, dtype: Any = np.float32) -> np.ndarray:
        stddev = math.sqrt(scale / fan(shape, mode))
        if distribution == "normal":
            return normal(stddev)(key, shape, dtype)
        if distribution == "uniform":
            return uniform(-math.sqrt(3) * stddev, math.sqrt(3) * stddev)(key, shape, dtype)
        return truncated_normal(stddev / STDDEV_WITHIN_TWO, -2, 2)(key, shape, dtype)

    return init


def orthogonal(scale: float, column_axis: int) -> Initializer:
    """Return an initializer that draws orthogonal matrices, uniformly, times `scale`.

    Args:
      column_axis: the axis of a kernel whose slices are the columns of the matrix; if there are
        more of them than rows, the rows are orthogonal instead.

    References:
      Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear
      neural networks", arXiv:1312.6120.
    """

    def draw(rng: np.random.Generator, shape: Shape) -> np.ndarray:
        columns = shape[column_axis]
        rows = math.prod(shape) // columns
        drawn = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(drawn)
        q = q * np.sign(np.diag(r))  # without it the distribution is not uniform
        q = q.T if rows < columns else q
        others = tuple(np.delete(shape, column_axis))
        return scale * np.moveaxis(q.reshape(*others, columns), -1, column_axis)

    return _on_host(draw)


def fan(shape: Shape, mode: str) -> float:
    """Return what a variance is divided by for a kernel of this shape; see `variance_scaling`."""
    if len(shape) < 2:
        raise ValueError(f"weights {shape} have no inputs and outputs to scale a variance by")
    window = math.prod(shape[:-2])
    fan_in, fan_out = window * shape[-2], window * shape[-1]
    return {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
        "fan_geo_avg": math.sqrt(fan_in * fan_out),
    }[mode]


def _on_host(draw: Callable[[np.random.Generator, Shape], np.ndarray]) -> Initializer:
    """Return the initializer that draws with NumPy's generator for its key."""

    def init(key: jax.Array, shape: Shape, dtype: Any = np.float32) -> np.ndarray:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return draw(rng, shape).astype(dtype)

    return init
