"""The layers that every model is built from.

Unlike Flax's own they take a traced dropout rate, return bfloat16 from a normalisation of bfloat16,
and convolve by the method that is fastest on the device. Constants start as NumPy arrays: filling
one on the device would compile a program for each length. In training mode (`model.train()`) a
`Dropout` draws from the `rngs` that the call is given.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from experiments.ops import convolution
from experiments.types import Initializer, is_off

Moments = tuple[jax.Array, jax.Array]  # E[x] and E[x²]
SAVED = "saved"  # checkpoint name of what `resnet.Repeated` does not compute again backwards


class Init(TypedDict):
    """The arguments by which the weights of every model and layer are drawn."""

    kernel_init: Initializer
    rngs: nnx.Rngs


def drawn(shape: tuple[int, ...], *, kernel_init: Initializer, rngs: nnx.Rngs) -> jax.Array:
    """Return new weights of a shape."""
    return kernel_init(rngs.params(), shape, jnp.float32)


class Dense(nnx.Module):
    """A fully connected layer, x W + b: [..., in_features] to [..., features]."""

    def __init__(
        self, in_features: int, features: int, *, use_bias: bool = True, **init: Unpack[Init]
    ):
        self.kernel = nnx.Param(drawn((in_features, features), **init))
        self.bias = nnx.Param(np.zeros(features, np.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel[...]
        return y if self.bias is None else y + self.bias[...]


class Conv(nnx.Module):
    """Cross-correlation over 1, 2 or 3 spatial axes, channels last.

    [batch, *spatial, in_features] to [batch, *out, features], where per axis
    out = floor((W − F + 2P) / S) + 1. With `flip_kernel` it is convolution in the mathematical
    sense, which reads the kernel backwards.
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
        **init: Unpack[Init],
    ):
        shape = (*kernel_size, in_features // groups, features)
        self.kernel = nnx.Param(drawn(shape, **init))
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
        y = checkpoint_name(y, SAVED)
        return y if self.bias is None else y + self.bias[...]


class WeightedPool(nnx.Module):
    """Average pooling, times a trainable coefficient, plus a bias, one of each per channel.

    The layers S2 and S4 of LeNet-5 (LeCun et al. 1998, section II.B) without their sigmoid. The
    coefficients start at 1 and the biases at 0. `pool` is a partial of `avg_pool`, its `window` a
    tuple.
    """

    def __init__(self, channels: int, pool: functools.partial[jax.Array]):
        self.scale = nnx.Param(np.ones(channels, np.float32))
        self.bias = nnx.Param(np.zeros(channels, np.float32))
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pool(x) * self.scale[...] + self.bias[...]

    @property
    def window_size(self) -> int:
        """The number of values that one mean is of."""
        return math.prod(self.pool.keywords["window"])


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015, algorithm 1).

    Statistics are computed in float32 whatever the input; the output has the input's dtype. With
    each batch the running averages, which evaluation uses, move by 1 − `momentum` towards it.
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
        """Return `x` normalised, and update the averages unless its moments are `known`."""
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
        """Move the running averages towards the moments of `count` values per channel."""
        unbiased = _variance(known) * (count / max(count - 1, 1))
        for average, now in ((self.mean, known[0]), (self.var, unbiased)):
            average.set_value(self.momentum * average[...] + (1 - self.momentum) * now)


def moments(x: jax.Array) -> Moments:
    """Return E[x] and E[x²] over all axes but the last, [channels] each, in float32 at least."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return checkpoint_name(jnp.mean(x, axes), SAVED), checkpoint_name(jnp.mean(x**2, axes), SAVED)


def _variance(known: Moments) -> jax.Array:
    mean, square = known
    return jnp.maximum(square - mean**2, 0.0)


class GroupNorm(nnx.Module):
    """Normalisation of each example by itself, in `groups` of channels (Wu & He 2018, section 3).

    [batch, ..., features]: mean and variance are those of all positions and the channels of a
    group, in float32 whatever the input; a scale and a bias per channel follow. One group is layer
    normalisation (Ba et al. 2016). It computes the same in training and in evaluation.
    """

    def __init__(self, features: int, groups: int = 1, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(np.ones(features, np.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        grouped = wide.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        mean = jnp.mean(grouped, (1, 3), keepdims=True)
        centred = grouped - mean
        variance = jnp.mean(centred**2, (1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


@jax.named_scope("@local_response_norm")
def local_response_norm(
    x: jax.Array, size: int = 5, *, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 2.0
) -> jax.Array:
    """Return x_c / (k + α Σ x_j²)^β, summed over the `size` channels j around c: `[..., C]`.

    There are fewer such channels at both ends. PyTorch's layer takes `size` times this α. The
    constants, those of the paper by default, may be traced; the sum is in float32 at least.

    References:
      Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks",
      section 3.3.
    """
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    low = (size - 1) // 2
    padded = jnp.pad(squares, [(0, 0)] * (x.ndim - 1) + [(low, size - 1 - low)])
    total = sum(padded[..., shift : shift + x.shape[-1]] for shift in range(size))
    return x * ((k + alpha * total) ** -beta).astype(x.dtype)


class Spectral(nnx.Module):
    """A linear layer without bias divided by its spectral norm, plus a bias (Miyato et al. 2018).

    One step of power iteration per call estimates the norm σ of the kernel as a matrix
    [inputs, features]; in training mode its vector `u` is carried from call to call.
    """

    def __init__(self, layer: Dense | Conv):
        features = layer.kernel.shape[-1]
        self.layer = layer
        self.bias = nnx.Param(np.zeros(features, np.float32))
        start = np.random.default_rng(0).normal(size=features).astype(np.float32)
        self.u: nnx.Variable = nnx.BatchStat(start / np.linalg.norm(start))
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.layer.kernel[...]
        kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        matrix = kernel.reshape(-1, kernel.shape[-1])
        fixed, u = jax.lax.stop_gradient(matrix), self.u[...]
        v = _unit(fixed @ u)
        u = _unit(v @ fixed)
        if not self.use_running_average:
            self.u.set_value(u)
        sigma = v @ matrix @ u
        return self.layer(x) / sigma.astype(x.dtype) + self.bias[...]


def _unit(vector: jax.Array) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + 1e-12)


class Dropout(nnx.Module):
    """Inverted dropout: zero with probability `rate`, else x / (1 − rate) (Srivastava et al. 2014).

    `rate` may be traced; a rate that is exactly 0 in the config costs nothing.
    """

    def __init__(self, rate: float | jax.Array):
        self.rate = rate
        self.deterministic = False

    @property
    def active(self) -> bool:
        """True in training mode, unless the rate is exactly 0."""
        return not (self.deterministic or is_off(self.rate))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if not self.active:
            return x
        if rngs is None:
            raise ValueError("Dropout in training mode needs rngs")
        share = 1 - jnp.asarray(self.rate, jnp.float32)
        chosen = jax.random.uniform(rngs.dropout(), x.shape) < share
        return jnp.where(chosen, x / share.astype(x.dtype), jnp.zeros((), x.dtype))


def is_small(input_shape: Sequence[int]) -> bool:
    """Return True for images [H, W, C] below 96 pixels, too small for first layers of ImageNet."""
    return min(input_shape[:2]) < 96


def flatten(x: jax.Array) -> jax.Array:
    """Return [batch, ...] as [batch, features]."""
    return x.reshape(x.shape[0], -1)


@jax.custom_jvp
def step(x: jax.Array) -> jax.Array:
    """Return 1 where x ≥ 0, else 0: the threshold unit (McCulloch & Pitts 1943).

    Its derivative counts as 1. With the loss ½‖y − o‖² the gradient of a weight is then −(y − o) x,
    so that gradient descent is Rosenblatt's perceptron rule.
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
