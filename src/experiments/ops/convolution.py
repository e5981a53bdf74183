"""Convolution with channels last, fast on every backend.

On an accelerator this is `lax.conv_general_dilated`. XLA's CPU backend is slow at that, above all
at its gradients and inside loops. There a convolution in two dimensions goes to the C library
(`windows.py`), or becomes matrix products, which XLA hands to threaded library code: by Winograd's
algorithm where there are many channels, else, and where there is no C compiler, of patches and the
kernel. All of it is differentiable: gradients of gradients, forward mode, vmap and scan work.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from experiments.ops.backend import is_xla_only, products, usable
from experiments.ops.patches import grouped_conv, pad, patches_conv
from experiments.ops.windows import is_worth_it, multiply_windows
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
        strides: step of the window, one number or one per dimension.
        padding: "SAME" (output size `ceil(size / stride)`), "VALID" (none), one number for all
            sides, or one number or one `(low, high)` pair per dimension.
        dilation: distance between the taps of the window, one number or one per dimension.
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
    return _conv(x.astype(dtype), kernel.astype(dtype), strides, pads, dilation, groups)


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "SAME",
) -> jax.Array:
    """Add up copies of `kernel`, one for each value of `x`, `strides` places apart.

    It is the transpose of `conv`: what its gradient does to that of its output (Dumoulin & Visin
    2016, arXiv:1603.07285, section 4).

    Args:
        x: `[N, *spatial, C_in]`.
        kernel: `[*window, C_in, C_out]`.
        strides: places between copies, one number or one per dimension.
        padding: "SAME" (output size `size * stride`), "VALID" (`(size - 1) * stride + window`), or
            how much of that is cut off on both sides, one number or one per dimension.

    Returns:
        `[N, *out, C_out]` in the type that x and the kernel promote to.

    Raises:
        ValueError: shapes or padding do not fit together.
    """
    dims, window = x.ndim - 2, kernel.shape[:-2]
    if len(window) != dims or x.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"the kernel {kernel.shape} does not fit x {x.shape}")
    strides = per_dimension(strides, dims, "strides")
    if isinstance(padding, str):
        same = padding.upper() == "SAME"
        cuts = [(k - s) * same for k, s in zip(window, strides, strict=True)]
        crops = [(max(c, 0) // 2, c - max(c, 0) // 2) for c in cuts]
    else:
        each = (padding,) * dims if isinstance(padding, int) else tuple(padding)
        crops = [(cut, cut) for cut in each]
    pads = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(window, crops, strict=True))
    if len(crops) != dims or any(min(pad) < 0 for pad in pads):
        raise ValueError(f"a padding of {padding} cuts off more than a window of {list(window)}")
    dtype = jnp.result_type(x, kernel)
    flipped = jnp.flip(kernel, range(dims)).astype(dtype)
    return _conv(x.astype(dtype), flipped, (1,) * dims, pads, (1,) * dims, 1, apart=strides)


def _conv(x, kernel, strides, pads, dilation, groups, apart=None):
    """Convolve arrays of one type; the pixels of x come to lie so far `apart`, zeros between."""
    if jax.default_backend() != "cpu" or is_xla_only():
        return _xla_conv(x, kernel, strides, pads, dilation, groups, apart)
    if apart is not None and set(apart) != {1}:
        return _conv_of_phases(x, kernel, pads, apart)
    # CPUs compute in float32: smaller types would be converted there and back at every step.
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    y = _cpu_conv(x, kernel, strides, pads, dilation, groups, products(dtype))
    return y.astype(dtype)


def _conv_of_phases(x, kernel, pads, apart):
    """Convolve pixels that come to lie so far `apart`, without the zeros between them.

    Outputs that are as far apart see the same taps, every so many of the kernel, so that each such
    phase is a convolution of the pixels as they are; all phases are channels of one (the sub-pixel
    convolution of Shi et al. 2016, arXiv:1609.07009).
    """
    size, out_channels, lows = x.shape[1:-1], kernel.shape[-1], []
    out = [
        (n - 1) * step + 1 + sum(p) - k + 1
        for n, step, p, k in zip(size, apart, pads, kernel.shape, strict=False)
    ]
    for axis, (step, (low, _)) in enumerate(zip(apart, pads, strict=True)):
        kernel, first = _phases(kernel, axis, step, low)
        lows.append(-first)
    places = [-(-o // step) for o, step in zip(out, apart, strict=True)]
    window = kernel.shape[: len(size)]
    near = [
        (low, o - n - low + k - 1) for low, o, n, k in zip(lows, places, size, window, strict=True)
    ]
    ones = (1,) * len(size)
    flat = kernel.reshape(*window, x.shape[-1], -1)
    y = _conv(
        pad(x, [(min(p, 0), min(q, 0)) for p, q in near]),
        flat,
        ones,
        tuple((max(p, 0), max(q, 0)) for p, q in near),
        ones,
        1,
    )
    y = y.reshape(-1, *places, *apart, out_channels)
    dims = range(1, len(size) + 1)
    y = y.transpose(0, *(i for d in dims for i in (d, len(size) + d)), y.ndim - 1)
    y = y.reshape(-1, *(o * step for o, step in zip(places, apart, strict=True)), out_channels)
    return y[(slice(None), *(slice(o) for o in out))]


def _phases(kernel, axis, step, low):
    """Return the taps of each phase along an axis, phases before the outputs, and the first place.

    Phase r has the outputs r, r + step, ...; its taps are those t for which r + t - low is a
    multiple of `step`, and that multiple is the place, beside the output's own, that they see.
    """
    k = kernel.shape[axis]
    first = [(low - r) % step for r in range(step)]
    places = [(r + t - low) // step for r, t in enumerate(first)]
    counts = [len(range(t, k, step)) for t in first]
    begin = min(places)
    end = max(place + count for place, count in zip(places, counts, strict=True))
    parts = []
    for t, place, count in zip(first, places, counts, strict=True):
        taps = lax.slice_in_dim(kernel, min(t, k), k, step, axis)
        fill = [(0, 0)] * kernel.ndim
        fill[axis] = (place - begin, end - place - count)
        parts.append(jnp.pad(taps, fill))
    return jnp.stack(parts, axis=-2), begin


def per_dimension(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """Return one positive number per spatial dimension."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or min(values) < 1:
        raise ValueError(f"{name} must be one positive number or {dims} of them, got {value}")
    return values


def explicit_padding(
    padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return padding as one `(low, high)` pair per spatial dimension."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f'padding must be "SAME", "VALID" or numbers, got {padding!r}')
        pads = tuple(lax.padtype_to_pads(size, window, strides, padding.upper()))
    else:
        entries = (padding,) * len(size) if isinstance(padding, int) else tuple(padding)
        pads = tuple((p, p) if isinstance(p, int) else (*p,) for p in entries)
    if len(pads) != len(size) or any(len(p) != 2 or min(p) < 0 for p in pads):
        raise ValueError(
            f"padding must give {len(size)} non-negative (low, high) pairs, got {padding}"
        )
    for s, w, p in zip(size, window, pads, strict=True):
        if s + sum(p) < w:
            raise ValueError(f"a window of {w} does not fit a size of {s} with padding {p}")
    return pads


def _xla_conv(x, kernel, strides, pads, dilation, groups, apart):
    spatial = "DHW"[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=pads,
        lhs_dilation=apart,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _cpu_conv(x, kernel, strides, pads, dilation, groups, units):
    """Convolve by the C library, by Winograd's algorithm (3x3, stride 1) or by patches.

    Args:
      units: products of bfloat16 in the place of one of float32 (`backend.products`).

    It is jitted so that all layers of one shape are traced once.
    """
    kernel, pads = _without_dead_taps(kernel, x.shape[1:-1], strides, pads, dilation)
    if groups > 1:
        return grouped_conv(x, kernel, strides, pads, dilation, groups)
    window, channels = kernel.shape[:-2], min(kernel.shape[-2:])
    minimal = (
        window == (3, 3)
        and set(strides + dilation) == {1}
        and channels >= 4
        and min(s + sum(p) - 2 for s, p in zip(x.shape[1:3], pads, strict=True)) > 2
    )
    # with many channels fewer multiplications are worth Winograd's transforms
    wide = minimal and not units and channels >= 64
    fits = x.ndim == 4 and set(dilation) == {1} and window != (1, 1) and not wide
    if fits and usable(x, kernel) and is_worth_it(x, kernel, pads, strides):
        return multiply_windows(x, kernel, (*pads[0], *pads[1]), strides, products=units)
    if minimal:
        return winograd_conv(x, kernel, pads)
    return patches_conv(x, kernel, strides, pads, dilation)


def _without_dead_taps(kernel, size, strides, pads, dilation):
    """Cut off taps that see only padding, as do all but the centre of a 3x3 on a 1x1 image."""
    trimmed = []
    for axis, (n, s, (low, high), d) in enumerate(zip(size, strides, pads, dilation, strict=True)):
        k = kernel.shape[axis]
        starts = range(0, n + low + high - d * (k - 1), s)  # of the windows, in the padded input
        live = [t for t in range(k) if any(low <= start + t * d < low + n for start in starts)]
        first, last = (live[0], live[-1]) if live else (0, 0)
        kernel = lax.slice_in_dim(kernel, first, last + 1, axis=axis)
        trimmed.append((low - first * d, high - (k - 1 - last) * d))
    return kernel, tuple(trimmed)
