"""The layers that every model is built from.

Unlike flax's own they take a traced dropout rate, keep bfloat16 activations bfloat16 through a
normalisation, and convolve by the lowering that is fastest on the device. Constants start as numpy
arrays: filling one on the device would compile a program for every length. In training mode
(`model.train()`) a `Dropout` draws from the `rngs` handed to the call.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from experiments.core.initializers import Initializer
from experiments.ops import convolution, product

Moments = tuple[jax.Array, jax.Array]  # E[x] and E[x²]
KEPT = "kept"  # name of what a backward pass that computes things again has kept: see repeated.py


class Dense(nnx.Module):
    """x W + b over the last axis: [..., in_features] to [..., features]."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, features), jnp.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = product.matmul(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class Conv(nnx.Module):
    """Cross-correlation over 1, 2 or 3 spatial axes, channels last.

    With `flip_kernel` convolution in the sense of mathematics: the kernel is read backwards.
    [batch, *spatial, in_features] to [batch, *out, features] with
    out = floor((W − F + 2P) / S) + 1 per axis.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence = "SAME",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        flip_kernel: bool = False,
        use_bias: bool = True,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_features // groups, features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32)) if use_bias else None
        self.strides, self.padding = strides, padding
        self.dilation, self.groups = dilation, groups
        self.flip_kernel = flip_kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        if self.flip_kernel:
            kernel = jnp.flip(kernel, range(kernel.ndim - 2))
        y = convolution.conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        y = checkpoint_name(y, KEPT)
        return y if self.bias is None else y + self.bias[...]


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015, algorithm 1).

    Statistics are computed in float32 whatever the input; the output has the input's dtype. The
    running averages that evaluation uses move by 1 − `momentum` a batch.
    """

    def __init__(
        self, features: int | tuple[int, ...], *, momentum: float = 0.9, epsilon: float = 1e-5
    ):
        self.scale = nnx.Param(np.ones(features, np.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32))
        self.mean = nnx.BatchStat(np.zeros(features, np.float32))
        self.var = nnx.BatchStat(np.ones(features, np.float32))
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = False

    def __call__(self, x: jax.Array, known: Moments | None = None) -> jax.Array:
        """`x` normalised; the averages follow it, unless its moments are known already."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            if known is None:
                known = moments(x)
                self.follow(known, math.prod(x.shape[:-1]))
            mean, var = known[0], _variance(known)
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        offset = self.bias[...] - mean * factor
        return x * factor.astype(x.dtype) + offset.astype(x.dtype)

    def follow(self, known: Moments, count: int) -> None:
        """Moves the running averages towards a batch of `count` places with these moments."""
        unbiased = _variance(known) * (count / max(count - 1, 1))
        for average, now in ((self.mean, known[0]), (self.var, unbiased)):
            average.set_value(self.momentum * average[...] + (1 - self.momentum) * now)


def moments(x: jax.Array) -> Moments:
    """E[x] and E[x²] over all axes but the last, [channels] each, in float32 at least."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return checkpoint_name(jnp.mean(x, axes), KEPT), checkpoint_name(jnp.mean(x**2, axes), KEPT)


def _variance(known: Moments) -> jax.Array:
    mean, square = known
    return jnp.maximum(square - mean**2, 0.0)


class Dropout(nnx.Module):
    """Inverted dropout: zero with probability `rate`, else 1 / (1 − rate) (Srivastava 2014).

    `rate` may be traced; a rate that is exactly 0 in the config costs nothing.
    """

    def __init__(self, rate: float | jax.Array):
        self.rate = rate
        self.deterministic = False

    @property
    def active(self) -> bool:
        """Whether it does anything."""
        off = isinstance(self.rate, int | float) and self.rate == 0
        return not (self.deterministic or off)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if not self.active:
            return x
        if rngs is None:
            raise ValueError("Dropout in training mode needs rngs")
        keep = 1 - jnp.asarray(self.rate, jnp.float32)
        mask = jax.random.uniform(rngs.dropout(), x.shape) < keep
        return jnp.where(mask, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


def is_small(input_shape: Sequence[int]) -> bool:
    """Whether images [H, W, C] are too small for a stem made for ImageNet: below 96 pixels."""
    return min(input_shape[:2]) < 96


def flatten(x: jax.Array) -> jax.Array:
    """[batch, ...] to [batch, features]."""
    return x.reshape(x.shape[0], -1)


@jax.custom_jvp
def step(x: jax.Array) -> jax.Array:
    """1 where x ≥ 0, else 0: the threshold unit (McCulloch & Pitts 1943).

    The derivative passes straight through. With the loss ½‖y − o‖² the gradient of a weight is
    then −(y − o) x, which makes gradient descent Rosenblatt's perceptron rule.
    """
    return (x >= 0).astype(x.dtype)


step.defjvp(lambda primals, tangents: (step(*primals), tangents[0]))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "step": step,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "swish": jax.nn.swish,
}
