"""Convolutions as matrix products of patches and the kernel, which XLA hands to threaded code.

They serve where neither the C library nor Winograd's algorithm does, and any number of dimensions.
"""

import itertools

import jax.numpy as jnp
from jax import lax


def grouped_conv(x, kernel, strides, pads, dilation, groups):
    """Convolve each group of channels separately."""
    *window, c_group, c_out = kernel.shape
    x = pad(x, pads)
    taps = [
        shifted(x, tap, window, strides, dilation) for tap in itertools.product(*map(range, window))
    ]
    kernel = kernel.reshape(len(taps), c_group, groups, -1)
    if c_group == 1:  # depthwise: no sum over channels, hence no matrix product
        y = sum(tap[..., None] * k for tap, k in zip(taps, kernel[:, 0], strict=True))
    else:
        taps = [tap.reshape(*tap.shape[:-1], groups, c_group) for tap in taps]
        y = jnp.einsum("...gtc,tcgo->...go", jnp.stack(taps, axis=-2), kernel)
    return y.reshape(*y.shape[:-2], c_out)


def patches_conv(x, kernel, strides, pads, dilation):
    """Multiply patches `[N * out, window * C_in]` by the kernel as a matrix."""
    *window, c_in, c_out = kernel.shape
    x = pad(x, pads)
    out = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[1:-1], window, strides, dilation, strict=True)
    ]
    if c_in < 8 and dilation[-1] == 1:
        x, kernel = _share_patches(x, kernel, strides[-1], out[-1])
    else:
        x = _stack_taps(x, len(window), window[-1], strides[-1], dilation[-1])
    # One dimension at a time: the gradient then adds a few overlapping views, not one per tap.
    for axis in reversed(range(1, len(window))):
        x = _stack_taps(x, axis, window[axis - 1], strides[axis - 1], dilation[axis - 1])
    # Flat, as XLA transposes a whole operand for the kernel's gradient of a product over many axes.
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(x.shape[-1], -1)
    return y.reshape(x.shape[0], *out, c_out)


def _stack_taps(x, axis, k, stride, dilation):
    """Replace `axis` by the windows along it; their taps go in front of the channels."""
    size = x.shape[axis]
    span = size - dilation * (k - 1)
    taps = [
        lax.slice_in_dim(x, t * dilation, t * dilation + span, stride, axis=axis) for t in range(k)
    ]
    return jnp.concatenate(taps, axis=-1) if k > 1 else taps[0]


def _share_patches(x, kernel, stride, out):
    """Take windows along the last dimension that several neighbouring outputs share.

    The neighbours become further output channels, up to 80 in all, of a kernel that covers
    everything that they see: more multiplications by zero, but less to copy and a wider matrix,
    which is faster with few input channels.

    Returns:
        the windows `[N, ..., out / share, taps * C_in]` and the kernel
        `[..., taps, C_in, share, C_out]`.
    """
    k, c_in, c_out = kernel.shape[-3:]
    share = max(n for n in range(1, out + 1) if out % n == 0 and n * c_out <= max(80, c_out))
    step, taps, blocks = share * stride, (share - 1) * stride + k, out // share
    reach = -(-taps // step)  # a window is a block of `step` places and part of the next ones
    full = (blocks + reach - 1) * step
    x = pad(x, [(0, 0)] * (x.ndim - 3) + [(0, full - x.shape[-2])])
    x = x.reshape(*x.shape[:-2], blocks + reach - 1, step * c_in)
    parts = [x[..., i : i + blocks, : min(step, taps - i * step) * c_in] for i in range(reach)]
    fixed = [(0, 0)] * (kernel.ndim - 3)
    kernels = [
        jnp.pad(kernel, [*fixed, (low, taps - k - low), (0, 0), (0, 0)])
        for low in range(0, share * stride, stride)
    ]
    return jnp.concatenate(parts, axis=-1), jnp.stack(kernels, axis=-2)


def pad(x, pads):
    """Pad the spatial dimensions with zeros, or crop them where a pad is negative."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])


def shifted(x, tap, window, strides, dilation=(1, 1, 1)):
    """Return what one tap of the window sees of the padded `x` at each output: `[N, *out, C]`."""
    start, limit = [0], [x.shape[0]]
    for t, size, k, s, d in zip(tap, x.shape[1:-1], window, strides, dilation, strict=False):
        out = (size - d * (k - 1) - 1) // s + 1
        start.append(t * d)
        limit.append(t * d + (out - 1) * s + 1)
    return lax.slice(x, [*start, 0], [*limit, x.shape[-1]], [1, *strides, 1])
