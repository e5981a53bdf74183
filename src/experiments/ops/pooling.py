"""Pooling with channels last, quick on every backend.

XLA's CPU backend runs `reduce_window`, and above all the gradient of a maximum over windows,
slowly. Here a pool is a reduction over the few shifted views of the input that make up its window.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.ops.convolution import Padding, explicit_padding, per_dimension, shifted


@jax.named_scope("@max_pool")
def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Largest value in each window of `x` `[N, *spatial, C]`, as `[N, *out, C]`.

    Padding never wins: it counts as minus infinity. Among equal values the gradient goes to the
    first, and a NaN in the window gives NaN, as in `lax.reduce_window`.

    Args:
        x: `[N, *spatial, C]` with one to three spatial dimensions.
        window: its size, one number or one a dimension.
        strides: step of the window; None means the window itself, so that windows do not overlap.
        padding: as in `conv`; "VALID" drops what does not fill a window.
    """
    return functools.reduce(_first_maximum, _views(x, window, strides, padding, -jnp.inf))


@jax.named_scope("@avg_pool")
def avg_pool(
    x: jax.Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = False,
) -> jax.Array:
    """Mean of each window of `x` `[N, *spatial, C]`, as `[N, *out, C]`.

    Args:
        x, window, strides, padding: as in `max_pool`.
        count_include_pad: divide by the window's size everywhere (PyTorch's default), rather than
            by the number of values in the window that are not padding (Keras).
    """
    views = _views(x, window, strides, padding, 0)
    if count_include_pad:
        return sum(views) / len(views)
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    return sum(views) / sum(_views(ones, window, strides, padding, 0))


@jax.named_scope("@global_avg_pool")
def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over the spatial dimensions: `[N, *spatial, C]` to `[N, C]`."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def _first_maximum(a, b):
    return jnp.where((b > a) | jnp.isnan(b), b, a)


def _views(x, window, strides, padding, fill):
    """For each place in the window, the values that it takes at every output position."""
    dims = x.ndim - 2
    window = per_dimension(window, dims, "window")
    strides = window if strides is None else per_dimension(strides, dims, "strides")
    pads = explicit_padding(padding, x.shape[1:-1], window, strides)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return [
        shifted(x, tap, window, strides, (1,) * dims)
        for tap in itertools.product(*map(range, window))
    ]
