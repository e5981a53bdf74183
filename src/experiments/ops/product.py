"""Matrix products and convolutions at stride 1 by the matrix units of a processor (`products.c`).

Three operations, each linear in both of its factors: outputs, the gradient of the inputs and that
of the kernel. Each is the derivative of the others, so gradients of gradients, forward mode and
vmap work. Results are as exact as JAX's precision "high": they differ from those in float32 by some
5e-6 of the largest. With `JAX_DEFAULT_MATMUL_PRECISION=highest` nothing of this is used.
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
from experiments.ops.foreign import lanes, set_up

Pads = tuple[int, int, int, int]  # top, bottom, left, right

# XLA's own product is as quick
WORTH = 2**20  # below so many operations,
ROWS = 128  # for fewer rows, which are not worth taking a kernel apart,
NARROW = 16  # and where one side of the kernel is shorter.

_stock_only = ContextVar("stock_only", default=False)


@contextlib.contextmanager
def stock_operations() -> Iterator[None]:
    """Within it a trace holds operations of XLA alone: for programs that run on other platforms."""
    token = _stock_only.set(True)
    try:
        yield
    finally:
        _stock_only.reset(token)


def stock_only() -> bool:
    """Whether a trace is to hold operations of XLA alone."""
    return _stock_only.get()


def usable(*arrays: jax.Array) -> bool:
    """Whether a product of these can go to the matrix units.

    Not where XLA divides the program among several devices: it would gather their parts first.
    """
    if jax.default_backend() != "cpu":
        return False
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    exact = asked in ("highest", "float32")
    if exact or any(array.dtype != jnp.float32 for array in arrays) or not _one_device():
        return False
    return library.available()


def _one_device() -> bool:
    """Whether the program at hand runs on a device by itself, or says what each device does."""
    cores = jax.config.values["jax_num_cpu_devices"] > 1  # of which a run by itself takes one
    return jax.local_device_count() == 1 == jax.process_count() or cores


def matmul(x: jax.Array, kernel: jax.Array, *, in_loop: bool = False) -> jax.Array:
    """`x` `[..., inputs]` times `kernel` `[inputs, outputs]`: `[..., outputs]`.

    `in_loop`: of a recurrence, where XLA's products are slower than elsewhere.
    """
    halves = x.dtype == kernel.dtype == jnp.bfloat16
    if halves and jax.default_backend() == "cpu":  # XLA's would convert them as well
        x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
        return _matmul(x, kernel, in_loop, halves).astype(jnp.bfloat16)
    return _matmul(x, kernel, in_loop, halves)


def _matmul(x: jax.Array, kernel: jax.Array, in_loop: bool, halves: bool) -> jax.Array:
    # the number of rows is not known in a program for any batch, which is one of XLA's alone
    if stock_only() or 2 * x.size * kernel.shape[1] < WORTH or min(kernel.shape) < NARROW:
        return x @ kernel
    if not (in_loop or math.prod(x.shape[:-1]) >= ROWS) or not usable(x, kernel):
        return x @ kernel
    places, window = x.reshape(1, -1, 1, 1, x.shape[-1]), kernel.reshape(1, 1, 1, *kernel.shape)
    y = _multiply(places, window, pads=(0, 0, 0, 0), halves=halves, turned=False)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """`x` `[rows, inputs]` turned round times `dy` `[rows, outputs]`: `[inputs, outputs]`."""
    if stock_only() or 2 * x.size * dy.shape[1] < WORTH or not usable(x, dy):
        return x.T @ dy
    x, dy = (a.reshape(1, -1, 1, 1, a.shape[1]) for a in (x, dy))
    return _sum(x, dy, pads=(0, 0, 0, 0), halves=False, window=(1, 1))[0, 0, 0]


def multiply_windows(
    x: jax.Array, kernel: jax.Array, pads: Pads, *, halves: bool = False
) -> jax.Array:
    """The cross-correlation of `x` `[N, H, W, C]` with `kernel` `[kh, kw, C, O]` at stride 1.

    `pads` are less than the kernel is wide. With `halves` the numbers are bfloat16 in arrays of
    float32, those of derivatives as well: one product of the units instead of three.

    Returns `[N, H', W', O]` with `H' = H + top + bottom - kh + 1` and
    `W' = W + left + right - kw + 1`.
    """
    return _multiply(x[None], kernel[None], pads=pads, halves=halves, turned=False)[0]


def is_worth_it(x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]]) -> bool:
    """Whether `multiply_windows` takes these, and is quicker than XLA."""
    if any(not 0 <= p < k for k, both in zip(kernel.shape, pads, strict=False) for p in both):
        return False
    out = [n + sum(p) - k + 1 for n, k, p in zip(x.shape[1:], kernel.shape, pads, strict=False)]
    return 2 * x.shape[0] * math.prod(out) * math.prod(kernel.shape) >= WORTH


def _multiply(
    x: jax.Array, kernel: jax.Array, *, pads: Pads, halves: bool, turned: bool
) -> jax.Array:
    return multiply_p.bind(x, kernel, pads=pads, halves=halves, turned=turned)


def _sum(
    x: jax.Array, dy: jax.Array, *, pads: Pads, halves: bool, window: tuple[int, int]
) -> jax.Array:
    return sum_p.bind(x, dy, pads=pads, halves=halves, window=window)


def _rest(pads: Pads, window: Sequence[int]) -> Pads:
    """What the gradient of the inputs is padded with."""
    kh, kw = window
    top, bottom, left, right = pads
    return (kh - 1 - top, kh - 1 - bottom, kw - 1 - left, kw - 1 - right)


# x [lanes, N, H, W, C] and kernel [lanes, kh, kw, C, O] to y [lanes, N, H', W', O]; turned, the
# kernel is [lanes, kh, kw, O, C] and read backwards
multiply_p = Primitive("multiply_windows")
# x [lanes, N, H, W, C] and dy [lanes, N, H', W', O] to the kernel's gradient [lanes, kh, kw, C, O]
sum_p = Primitive("sum_windows")


@multiply_p.def_abstract_eval
def _(x, kernel, *, pads, halves, turned):
    kh, kw = kernel.shape[1:3]
    top, bottom, left, right = pads
    height, width = x.shape[2] + top + bottom - kh + 1, x.shape[3] + left + right - kw + 1
    channels = kernel.shape[3 if turned else 4]
    return x.update(shape=(lanes(x, kernel), x.shape[1], height, width, channels))


@sum_p.def_abstract_eval
def _(x, dy, *, pads, halves, window):
    return x.update(shape=(lanes(x, dy), *window, x.shape[4], dy.shape[4]))


def _gradient_of_x(dy, x, kernel, *, pads, halves, turned):
    window = kernel.shape[1:3]
    dx = _multiply(dy, kernel, pads=_rest(pads, window), halves=halves, turned=not turned)
    return _of_lanes(dx, x.aval.shape[0])


def _gradient_of_kernel(dy, x, kernel, *, pads, halves, turned):
    window = kernel.aval.shape[1:3]
    if turned:
        dk = _sum(dy, x, pads=_rest(pads, window), halves=halves, window=window)
    else:
        dk = _sum(x, dy, pads=pads, halves=halves, window=window)
    return _of_lanes(dk, kernel.aval.shape[0])


def _gradient_of_seen(dk, x, dy, *, pads, halves, window):
    dx = _multiply(dy, dk, pads=_rest(pads, window), halves=halves, turned=True)
    return _of_lanes(dx, x.aval.shape[0])


def _gradient_of_gradient(dk, x, dy, *, pads, halves, window):
    return _of_lanes(_multiply(x, dk, pads=pads, halves=halves, turned=False), dy.aval.shape[0])


def _of_lanes(gradient, count):
    """The gradient of an array that stood for all lanes is the sum of theirs."""
    return gradient if gradient.shape[0] == count else jnp.sum(gradient, 0, keepdims=True)


ad.defbilinear(multiply_p, _gradient_of_x, _gradient_of_kernel)
ad.defbilinear(sum_p, _gradient_of_seen, _gradient_of_gradient)


def _options(*, pads: Pads, halves: bool, turned: bool = False, **_: Any) -> list[int]:
    return [*pads, halves, turned]


set_up(multiply_p, _multiply, _options)
set_up(sum_p, _sum, _options)
