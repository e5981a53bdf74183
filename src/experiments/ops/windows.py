"""Convolutions at stride 1 as operations of the C library (`windows.c`), in float32.

There are two, each linear in both of its factors: outputs and, with a transposed kernel, the
gradient of the inputs (`multiply_windows`), and the gradient of the kernel (`sum_windows`). Each is
the derivative of the other, so that gradients of gradients, forward mode and vmap work.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from experiments.ops.primitives import define, trials

Pads = tuple[int, int, int, int]  # top, bottom, left, right

WORTH = 2**20  # the least floating-point operations for which a call is faster than XLA's own


def multiply_windows(
    x: jax.Array, kernel: jax.Array, pads: Pads, *, products: int = 0
) -> jax.Array:
    """Cross-correlate `x` `[N, H, W, C]` with `kernel` `[kh, kw, C, O]` at stride 1.

    Args:
      pads: padding, each less than the kernel's size in its dimension.
      products: of bfloat16 in the place of one of float32, in derivatives too (`backend.products`).
    Returns:
      `[N, H', W', O]` with `H' = H + top + bottom - kh + 1` and `W' = W + left + right - kw + 1`.
    """
    return multiply_p.bind(x[None], kernel[None], pads=pads, products=products, transposed=False)[0]


def is_worth_it(x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]]) -> bool:
    """Return True if `multiply_windows` can take these, and is faster than XLA."""
    if any(not 0 <= p < k for k, both in zip(kernel.shape, pads, strict=False) for p in both):
        return False
    out = [n + sum(p) - k + 1 for n, k, p in zip(x.shape[1:], kernel.shape, pads, strict=False)]
    return 2 * x.shape[0] * math.prod(out) * math.prod(kernel.shape) >= WORTH


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
def _(x, kernel, *, pads, products, transposed):
    kh, kw = kernel.shape[1:3]
    top, bottom, left, right = pads
    height, width = x.shape[2] + top + bottom - kh + 1, x.shape[3] + left + right - kw + 1
    channels = kernel.shape[3 if transposed else 4]
    return x.update(shape=(trials(x, kernel), x.shape[1], height, width, channels))


@sum_p.def_abstract_eval
def _(x, dy, *, pads, products, window):
    return x.update(shape=(trials(x, dy), *window, x.shape[4], dy.shape[4]))


def _gradient_of_x(dy, x, kernel, *, pads, products, transposed):
    window = kernel.shape[1:3]
    options = {"products": products, "transposed": not transposed}
    dx = multiply_p.bind(dy, kernel, pads=_gradient_pads(pads, window), **options)
    return _of_trials(dx, x.aval.shape[0])


def _gradient_of_kernel(dy, x, kernel, *, pads, products, transposed):
    window = kernel.aval.shape[1:3]
    options = {"products": products, "window": window}
    if transposed:
        dk = sum_p.bind(dy, x, pads=_gradient_pads(pads, window), **options)
    else:
        dk = sum_p.bind(x, dy, pads=pads, **options)
    return _of_trials(dk, kernel.aval.shape[0])


def _gradient_of_seen(dk, x, dy, *, pads, products, window):
    options = {"products": products, "transposed": True}
    dx = multiply_p.bind(dy, dk, pads=_gradient_pads(pads, window), **options)
    return _of_trials(dx, x.aval.shape[0])


def _gradient_of_gradient(dk, x, dy, *, pads, products, window):
    d_dy = multiply_p.bind(x, dk, pads=pads, products=products, transposed=False)
    return _of_trials(d_dy, dy.aval.shape[0])


def _of_trials(gradient, count):
    """Return the gradient of an array of so many trials; one that belongs to all gets a sum."""
    return gradient if gradient.shape[0] == count else jnp.sum(gradient, 0, keepdims=True)


ad.defbilinear(multiply_p, _gradient_of_x, _gradient_of_kernel)
ad.defbilinear(sum_p, _gradient_of_seen, _gradient_of_gradient)


def _options(*, pads: Pads, products: int, transposed: bool = False, **_: Any) -> list[int]:
    return [*pads, transposed, products]


define(multiply_p, _options)
define(sum_p, _options)
