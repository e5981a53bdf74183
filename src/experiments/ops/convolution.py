"""Convolution with channels last, quick on every backend.

On an accelerator this is `lax.conv_general_dilated`. XLA's CPU backend runs that slowly (above all
its gradients, and inside loops), so there a convolution becomes matrix products, which XLA hands to
threaded library code: Winograd's where they apply, patches times the kernel elsewhere. All of it is
plain differentiable JAX: grad of grad, forward mode, vmap and scan just work.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from experiments.ops.winograd import winograd_conv

Padding = str | int | Sequence[int | tuple[int, int]]


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlate `x` with `kernel` over one, two or three spatial dimensions.

    Args:
        x: `[N, *spatial, C_in]`.
        kernel: `[*window, C_in / groups, C_out]`.
        strides: step of the window, one number or one a dimension.
        padding: "SAME" (output size `ceil(size / stride)`), "VALID" (none), one number for all
            sides, or one number or one `(low, high)` pair a dimension.
        dilation: distance between the taps of the window, one number or one a dimension.
        groups: channels are split into this many groups that do not see each other;
            `groups == C_in` is a depthwise convolution.

    Returns:
        `[N, *out, C_out]` in the type that x and the kernel promote to, where
        `out = floor((size + padding - dilation * (window - 1) - 1) / stride) + 1`.

    Raises:
        ValueError: shapes, groups or padding do not fit together.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    dims = x.ndim - 2
    if dims not in (1, 2, 3) or kernel.ndim != x.ndim:
        raise ValueError(
            f"conv needs x [N, *spatial, C] with 1 to 3 spatial dimensions and a kernel of the "
            f"same rank, got x {x.shape} and kernel {kernel.shape}"
        )
    if x.shape[-1] != kernel.shape[-2] * groups or kernel.shape[-1] % groups:
        raise ValueError(
            f"{groups} group(s) do not fit x {x.shape} and kernel {kernel.shape}: the kernel needs "
            f"C_in / groups input channels and a multiple of groups output channels"
        )
    strides = per_dimension(strides, dims, "strides")
    dilation = per_dimension(dilation, dims, "dilation")
    window = [d * (k - 1) + 1 for k, d in zip(kernel.shape[:-2], dilation, strict=True)]
    pads = explicit_padding(padding, x.shape[1:-1], window, strides)
    dtype = jnp.result_type(x, kernel)
    if jax.default_backend() != "cpu":
        return _stock(x.astype(dtype), kernel.astype(dtype), strides, pads, dilation, groups)
    # CPUs compute in float32: smaller types would be converted there and back at each step.
    wide = jnp.promote_types(dtype, jnp.float32)
    y = _cpu_conv(x.astype(wide), kernel.astype(wide), strides, pads, dilation, groups)
    return y.astype(dtype)


def per_dimension(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """One positive number a spatial dimension."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or min(values) < 1:
        raise ValueError(f"{name} must be one positive number or {dims} of them, got {value}")
    return values


def explicit_padding(
    padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding as one `(low, high)` pair a spatial dimension."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f'padding must be "SAME", "VALID" or numbers, got {padding!r}')
        pads = tuple(lax.padtype_to_pads(size, window, strides, padding.upper()))
    else:
        entries = (padding,) * len(size) if isinstance(padding, int) else tuple(padding)
        pads = tuple((p, p) if isinstance(p, int) else tuple(p) for p in entries)
    if len(pads) != len(size) or any(len(p) != 2 or min(p) < 0 for p in pads):
        raise ValueError(
            f"padding must give {len(size)} non-negative (low, high) pairs, got {padding}"
        )
    for s, w, p in zip(size, window, pads, strict=True):
        if s + sum(p) < w:
            raise ValueError(f"a window of {w} does not fit a size of {s} with padding {p}")
    return pads


def _stock(x, kernel, strides, pads, dilation, groups):
    spatial = "DHW"[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=pads,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )


def _cpu_conv(x, kernel, strides, pads, dilation, groups):
    """Winograd for 3x3 kernels at stride 1 with enough channels to be worth it, else patches."""
    if (
        kernel.shape[:-2] == (3, 3)
        and set(strides + dilation) == {1}
        and groups == 1
        and min(kernel.shape[2:]) >= 8
        and min(s + sum(p) - 2 for s, p in zip(x.shape[1:3], pads, strict=True)) > 2
    ):
        return winograd_conv(x, kernel, pads)
    return _patches_conv(x, kernel, strides, pads, dilation, groups)


def _patches_conv(x, kernel, strides, pads, dilation, groups):
    """Convolution as patches `[N, *out, taps * C_in]` times the kernel as a matrix."""
    *window, c_group, c_out = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    taps = [
        shifted(x, tap, window, strides, dilation) for tap in itertools.product(*map(range, window))
    ]
    if groups == 1:
        patches = jnp.concatenate(taps, axis=-1)
        return jnp.matmul(patches, kernel.reshape(-1, c_out))
    if c_group == 1:  # depthwise: no sum over channels, hence no matrix product
        kernel = kernel.reshape(len(taps), groups, -1)
        y = sum(tap[..., None] * k for tap, k in zip(taps, kernel, strict=True))
        return y.reshape(*y.shape[:-2], c_out)
    patches = jnp.stack([tap.reshape(*tap.shape[:-1], groups, c_group) for tap in taps], axis=-2)
    kernel = kernel.reshape(math.prod(window), c_group, groups, -1)
    y = jnp.einsum("...gtc,tcgo->...go", patches, kernel)
    return y.reshape(*y.shape[:-2], c_out)


def shifted(x, tap, window, strides, dilation=(1, 1, 1)):
    """What one tap of the window sees of the padded `x` at each output position, `[N, *out, C]`."""
    start, limit = [0], [x.shape[0]]
    for t, size, k, s, d in zip(tap, x.shape[1:-1], window, strides, dilation, strict=False):
        out = (size - d * (k - 1) - 1) // s + 1
        start.append(t * d)
        limit.append(t * d + (out - 1) * s + 1)
    return lax.slice(x, [*start, 0], [*limit, x.shape[-1]], [1, *strides, 1])
