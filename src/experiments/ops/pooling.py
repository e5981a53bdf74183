"""Pooling with channels last, fast on every backend.

XLA's CPU backend is slow at `reduce_window`, and above all at the gradient of a maximum over
windows. Here pooling is a reduction over the few shifted views of the input that make up a window.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.ops.convolution import Padding, explicit_padding, per_dimension
from experiments.ops.patches import shifted


@jax.named_scope("@max_pool")
def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Return the largest value in each window of `x` `[N, *spatial, C]`, as `[N, *out, C]`.

    Padding counts as minus infinity. Among equal values the gradient goes to the first, and a NaN
    in the window gives NaN, as in `lax.reduce_window`. Taking one axis after the other compares,
    and differentiates, six instead of nine values of a 3x3 window.

    Args:
        x: `[N, *spatial, C]` with one to three spatial dimensions.
        window: its size, one number or one per dimension.
        strides: step of the window; None means the window itself, so that windows do not overlap.
        padding: as in `conv`; "VALID" drops what does not fill a window.
    """
    dims = x.ndim - 2
    window = per_dimension(window, dims, "window")
    strides = window if strides is None else per_dimension(strides, dims, "strides")
    pads = explicit_padding(padding, x.shape[1:-1], window, strides)
    for axis in reversed(range(dims)):
        size, step, pad = [1] * dims, [1] * dims, [(0, 0)] * dims
        size[axis], step[axis], pad[axis] = window[axis], strides[axis], pads[axis]
        x = _largest(_views(x, size, step, pad, -jnp.inf))
    return x


@jax.named_scope("@avg_pool")
def avg_pool(
    x: jax.Array,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Return the mean of each window of `x` `[N, *spatial, C]`, as `[N, *out, C]`.

    Padding does not count, as in Keras. The arguments are those of `max_pool`.
    """
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    total, count = (sum(_views(a, window, strides, padding, 0)) for a in (x, ones))
    return total / count


@jax.named_scope("@global_avg_pool")
def global_avg_pool(x: jax.Array) -> jax.Array:
    """Return the mean over the spatial dimensions: `[N, *spatial, C]` to `[N, C]`."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


@jax.custom_jvp
def _largest(views: list[jax.Array]) -> jax.Array:
    """Return the elementwise maximum.

    Its derivative looks up which view had the first maximum. JAX's own would make several loops
    over the data for every view.
    """
    return functools.reduce(lambda a, b: jnp.where(_replaces(b, a), b, a), views)


@_largest.defjvp
def _(primals, tangents):
    (views,), (rates,) = primals, tangents
    largest, first = views[0], jnp.zeros(views[0].shape, jnp.int8)
    for place, view in enumerate(views[1:], 1):
        taken = _replaces(view, largest)
        largest, first = jnp.where(taken, view, largest), jnp.where(taken, jnp.int8(place), first)
    rate = sum(jnp.where(first == place, rate, 0) for place, rate in enumerate(rates))
    return largest, rate


def _replaces(b: jax.Array, a: jax.Array) -> jax.Array:
    """Return True where b is larger than a, or NaN."""
    return (b > a) | jnp.isnan(b)


def _views(x, window, strides, padding, fill):
    """Return, for each place in the window, the values that it sees at every output position."""
    dims = x.ndim - 2
    window = per_dimension(window, dims, "window")
    strides = window if strides is None else per_dimension(strides, dims, "strides")
    pads = explicit_padding(padding, x.shape[1:-1], window, strides)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return [
        shifted(x, tap, window, strides, (1,) * dims)
        for tap in itertools.product(*map(range, window))
    ]
