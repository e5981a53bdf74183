"""Matrix products and convolutions at stride 1 by the matrix units of a processor.

There are three operations, each linear in both of its factors: outputs and the gradient of the
inputs (`multiply_windows.c`), and the gradient of the kernel (`sum_windows.c`). Each is the
derivative of the others, so that gradients of gradients, forward mode and vmap work. Results are as
exact as JAX's precision "high": they differ from those in float32 by some 5e-6 of the largest. With
`JAX_DEFAULT_MATMUL_PRECISION=highest` XLA computes all of them.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from experiments.ops import library
from experiments.ops.primitives import define, trials

Pads = tuple[int, int, int, int]  # top, bottom, left, right

# the least for which the units are faster than XLA's own product
WORTH = 2**20  # floating-point operations
ROWS = 128  # rows of the first factor, among which splitting the kernel is shared
NARROW = 16  # inputs and outputs of the kernel

_xla_only = ContextVar("xla_only", default=False)


@contextlib.contextmanager
def xla_only() -> Iterator[None]:
    """Let what is traced within use XLA's operations alone, to run on other machines as well."""
    token = _xla_only.set(True)
    try:
        yield
    finally:
        _xla_only.reset(token)


def is_xla_only() -> bool:
    """Return True within `xla_only`."""
    return _xla_only.get()


def usable(*arrays: jax.Array) -> bool:
    """Return True if the matrix units can multiply these arrays.

    They cannot where XLA divides the program among several devices: it would gather the arrays.
    """
    if jax.default_backend() != "cpu":
        return False
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    exact = asked in ("highest", "float32")
    if exact or any(array.dtype != jnp.float32 for array in arrays) or not _one_device():
        return False
    return library.available()


def _one_device() -> bool:
    """Return True if the traced program runs on one device, or spells out each device's part."""
    cores = jax.config.values["jax_num_cpu_devices"] > 1  # a device per core, each used by itself
    return jax.local_device_count() == 1 == jax.process_count() or cores


def matmul(x: jax.Array, kernel: jax.Array, *, in_loop: bool = False) -> jax.Array:
    """Multiply `x` `[..., inputs]` by `kernel` `[inputs, outputs]`, to `[..., outputs]`.

    Args:
      in_loop: the product is part of a recurrence, where XLA's are slower than elsewhere.
    """
    bf16 = x.dtype == kernel.dtype == jnp.bfloat16
    if bf16 and jax.default_backend() == "cpu":  # XLA converts them too
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        return _matmul(x, kernel, in_loop, bf16).astype(jnp.bfloat16)
    return _matmul(x, kernel, in_loop, bf16)


def _matmul(x: jax.Array, kernel: jax.Array, in_loop: bool, bf16: bool) -> jax.Array:
    # `is_xla_only` comes first: an exported program for any batch size has no number of rows
    if is_xla_only() or 2 * x.size * kernel.shape[1] < WORTH or min(kernel.shape) < NARROW:
        return x @ kernel
    if not (in_loop or math.prod(x.shape[:-1]) >= ROWS) or not usable(x, kernel):
        return x @ kernel
    places, window = x.reshape(1, -1, 1, 1, x.shape[-1]), kernel.reshape(1, 1, 1, *kernel.shape)
    y = multiply_p.bind(places, window, pads=(0, 0, 0, 0), bf16=bf16, transposed=False)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Multiply the transpose of `x` `[rows, inputs]` by `dy` `[rows, outputs]`."""
    if is_xla_only() or 2 * x.size * dy.shape[1] < WORTH or not usable(x, dy):
        return x.T @ dy
    x, dy = (a.reshape(1, -1, 1, 1, a.shape[1]) for a in (x, dy))
    return sum_p.bind(x, dy, pads=(0, 0, 0, 0), bf16=False, window=(1, 1))[0, 0, 0]


def multiply_windows(
    x: jax.Array, kernel: jax.Array, pads: Pads, *, bf16: bool = False
) -> jax.Array:
    """Cross-correlate `x` `[N, H, W, C]` with `kernel` `[kh, kw, C, O]` at stride 1.

    Args:
      pads: padding, each less than the kernel's size in its dimension.
      bf16: the numbers, and those of derivatives, are bfloat16 in arrays of float32, so that one
        product of the units is enough instead of three.

    Returns:
      `[N, H', W', O]` with `H' = H + top + bottom - kh + 1` and `W' = W + left + right - kw + 1`.
    """
    return multiply_p.bind(x[None], kernel[None], pads=pads, bf16=bf16, transposed=False)[0]


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
def _(x, kernel, *, pads, bf16, transposed):
    kh, kw = kernel.shape[1:3]
    top, bottom, left, right = pads
    height, width = x.shape[2] + top + bottom - kh + 1, x.shape[3] + left + right - kw + 1
    channels = kernel.shape[3 if transposed else 4]
    return x.update(shape=(trials(x, kernel), x.shape[1], height, width, channels))


@sum_p.def_abstract_eval
def _(x, dy, *, pads, bf16, window):
    return x.update(shape=(trials(x, dy), *window, x.shape[4], dy.shape[4]))


def _gradient_of_x(dy, x, kernel, *, pads, bf16, transposed):
    window = kernel.shape[1:3]
    dx = multiply_p.bind(
        dy, kernel, pads=_gradient_pads(pads, window), bf16=bf16, transposed=not transposed
    )
    return _of_trials(dx, x.aval.shape[0])


def _gradient_of_kernel(dy, x, kernel, *, pads, bf16, transposed):
    window = kernel.aval.shape[1:3]
    if transposed:
        dk = sum_p.bind(dy, x, pads=_gradient_pads(pads, window), bf16=bf16, window=window)
    else:
        dk = sum_p.bind(x, dy, pads=pads, bf16=bf16, window=window)
    return _of_trials(dk, kernel.aval.shape[0])


def _gradient_of_seen(dk, x, dy, *, pads, bf16, window):
    dx = multiply_p.bind(dy, dk, pads=_gradient_pads(pads, window), bf16=bf16, transposed=True)
    return _of_trials(dx, x.aval.shape[0])


def _gradient_of_gradient(dk, x, dy, *, pads, bf16, window):
    return _of_trials(
        multiply_p.bind(x, dk, pads=pads, bf16=bf16, transposed=False), dy.aval.shape[0]
    )


def _of_trials(gradient, count):
    """Return the gradient of an array of so many trials; one that belongs to all gets a sum."""
    return gradient if gradient.shape[0] == count else jnp.sum(gradient, 0, keepdims=True)


ad.defbilinear(multiply_p, _gradient_of_x, _gradient_of_kernel)
ad.defbilinear(sum_p, _gradient_of_seen, _gradient_of_gradient)


def _options(*, pads: Pads, bf16: bool, transposed: bool = False, **_: Any) -> list[int]:
    return [*pads, bf16, transposed]


define(multiply_p, _options)
define(sum_p, _options)
