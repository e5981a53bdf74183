"""Convolutions as operations of the C library (`windows.c`), in float32.

There are two, each linear in both of its factors: outputs and, with a transposed kernel, the
gradient of the inputs at stride 1 (`multiply_windows`), and the gradient of the kernel
(`sum_windows`). Each is the derivative of the other, so that gradients of gradients, forward mode
and vmap work.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad

from experiments.ops.primitives import define, trials

Pads = tuple[int, int, int, int]  # top, bottom, left, right
Strides = tuple[int, int]  # down, across

WORTH = 2**20  # the least floating-point operations for which a call is faster than XLA's own


def multiply_windows(
    x: jax.Array, kernel: jax.Array, pads: Pads, strides: Strides = (1, 1), *, products: int = 0
) -> jax.Array:
    """Cross-correlate `x` `[N, H, W, C]` with `kernel` `[kh, kw, C, O]`.

    Args:
      pads: padding, each less than the kernel's size in its dimension.
      strides: steps of the window, down and across.
      products: of bfloat16 in the place of one of float32, in derivatives too (`backend.products`).
    Returns:
      `[N, H', W', O]` with `H' = floor((H + top + bottom - kh) / down) + 1`, and `W'` likewise.
    """
    options = {"pads": pads, "strides": strides, "products": products, "transposed": False}
    return multiply_p.bind(x[None], kernel[None], **options)[0]


def multiply_matrices(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply matrices `[B, M, K]` and `[B, K, N]`: a window of one place, B trials of it."""
    options = {"pads": (0, 0, 0, 0), "strides": (1, 1), "products": 0, "transposed": False}
    return multiply_p.bind(a[:, None, :, None], b[:, None, None], **options)[:, 0, :, 0]


def is_worth_it(
    x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]], strides: Sequence[int]
) -> bool:
    """Return True if `multiply_windows` can take these, and is faster than XLA."""
    if any(not 0 <= p < k for k, both in zip(kernel.shape, pads, strict=False) for p in both):
        return False
    out = _out(x.shape[1:3], kernel.shape[:2], [*pads[0], *pads[1]], strides)
    return 2 * x.shape[0] * math.prod(out) * math.prod(kernel.shape) >= WORTH


def _out(size: Sequence[int], window: Sequence[int], pads: Sequence[int], strides: Sequence[int]):
    """Return height and width of the outputs."""
    return [
        (n + sum(pads[2 * i : 2 * i + 2]) - window[i]) // strides[i] + 1 for i, n in enumerate(size)
    ]


def _gradient_pads(pads: Pads, window: Sequence[int]) -> Pads:
    """Return the padding of the convolution that is the gradient of the inputs."""
    kh, kw = window
    top, bottom, left, right = pads
    return (kh - 1 - top, kh - 1 - bottom, kw - 1 - left, kw - 1 - right)


# x [trials, N, H, W, C] and kernel [trials, kh, kw, C, O] to y [trials, N, H', W', O]; a transposed
# kernel is [trials, kh, kw, O, C] and its window is read backwards
multiply_p = Primitive("multiply_windows")
# x [trials, N, H, W, C] and dy [trials, N, H', W', O] to the kernel's gradient
# [trials, kh, kw, C, O]
sum_p = Primitive("sum_windows")


@multiply_p.def_abstract_eval
def _(x, kernel, *, pads, strides, products, transposed):
    out = _out(x.shape[2:4], kernel.shape[1:3], pads, strides)
    channels = kernel.shape[3 if transposed else 4]
    return x.update(shape=(trials(x, kernel), x.shape[1], *out, channels))


@sum_p.def_abstract_eval
def _(x, dy, *, pads, strides, products, window):
    return x.update(shape=(trials(x, dy), *window, x.shape[4], dy.shape[4]))


def _gradient_of_x(dy, x, kernel, *, pads, strides, products, transposed):
    if strides != (1, 1):
        return _gradient_at_strides(dy, x.aval.shape, kernel, pads, strides, products)
    pads = _gradient_pads(pads, kernel.shape[1:3])
    options = {"strides": (1, 1), "products": products, "transposed": not transposed}
    return _of_trials(multiply_p.bind(dy, kernel, pads=pads, **options), x.aval.shape[0])


def _gradient_at_strides(dy, shape, kernel, pads, strides, products):
    """Return the gradient of x [trials, N, H, W, C] of a convolution at larger strides.

    It is that of the same convolution at stride 1 of x with the pixels of a stride as channels,
    whose kernel is the same with zeros (space to depth).
    """
    _, height, width, channels = shape[1:]
    (down, across), (kh, kw) = strides, kernel.shape[1:3]
    high, wide = -(-kh // down), -(-kw // across)
    room = [(0, 0), (0, high * down - kh), (0, wide * across - kw), (0, 0), (0, 0)]
    kernel = jnp.pad(kernel, room)
    kernel = kernel.reshape(-1, high, down, wide, across, *kernel.shape[3:])
    kernel = kernel.transpose(0, 1, 3, 2, 4, 5, 6).reshape(
        -1, high, wide, down * across * channels, kernel.shape[6]
    )
    options = {"strides": (1, 1), "products": products, "transposed": True}
    dx = multiply_p.bind(dy, kernel, pads=(high - 1, high - 1, wide - 1, wide - 1), **options)
    dx = dx.reshape(*dx.shape[:4], down, across, channels).transpose(0, 1, 2, 4, 3, 5, 6)
    dx = dx.reshape(*dx.shape[:2], dx.shape[2] * down, dx.shape[4] * across, channels)
    top, _, left, _ = pads
    ends = [(-top, top + height - dx.shape[2]), (-left, left + width - dx.shape[3])]
    none = (0, 0, 0)
    dx = lax.pad(dx, jnp.zeros((), dx.dtype), [none, none, *((*end, 0) for end in ends), none])
    return _of_trials(dx, shape[0])


def _gradient_of_kernel(dy, x, kernel, *, pads, strides, products, transposed):
    window = kernel.aval.shape[1:3]
    options = {"strides": strides, "products": products, "window": window}
    if transposed:
        dk = sum_p.bind(dy, x, pads=_gradient_pads(pads, window), **options)
    else:
        dk = sum_p.bind(x, dy, pads=pads, **options)
    return _of_trials(dk, kernel.aval.shape[0])


def _gradient_of_seen(dk, x, dy, *, pads, strides, products, window):
    options = {"strides": strides, "products": products, "transposed": False}
    return _gradient_of_x(dy, x, dk, pads=pads, **options)


def _gradient_of_gradient(dk, x, dy, *, window, **options):
    d_dy = multiply_p.bind(x, dk, transposed=False, **options)
    return _of_trials(d_dy, dy.aval.shape[0])


def _of_trials(gradient, count):
    """Return the gradient of an array of so many trials; one that belongs to all gets a sum."""
    return gradient if gradient.shape[0] == count else jnp.sum(gradient, 0, keepdims=True)


ad.defbilinear(multiply_p, _gradient_of_x, _gradient_of_kernel)
ad.defbilinear(sum_p, _gradient_of_seen, _gradient_of_gradient)


def _options(
    *, pads: Pads, strides: Strides, products: int, transposed: bool = False, **_: Any
) -> list[int]:
    return [*pads, *strides, transposed, products]


define(multiply_p, _options)
define(sum_p, _options)
