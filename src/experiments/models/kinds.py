"""The layers that `model=cnn` knows, each a function from its place and arguments to a module."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.errors import UserError
from experiments.models.layers import ACTIVATIONS, BatchNorm, Conv, Dense, Dropout, flatten
from experiments.models.whitening import Whitening
from experiments.ops import pooling
from experiments.ops.normalisation import local_response_norm
from experiments.types import Activation, Decay, NonNegative, NonNegativeInt, Positive, PositiveInt

Features = PositiveInt | Literal["classes"]  # "classes": as many as the data have
Sizes = PositiveInt | list[PositiveInt]  # one number, or one a dimension
Padding = Literal["same", "valid"] | NonNegativeInt | list[NonNegativeInt]


@dataclass(frozen=True)
class Site:
    """Where a layer goes: the `shape` that comes in, without the batch, and what all layers get."""

    shape: tuple[int, ...]
    num_classes: int
    kernel_init: Initializer
    rngs: nnx.Rngs

    def conv(self, channels: int, features: int, **arguments: Any) -> Conv:
        """A convolution from `channels` to `features`."""
        groups = arguments["groups"]
        if channels % groups or features % groups:
            raise UserError(f"groups={groups} does not divide {channels} and {features} channels")
        given: dict[str, Any] = {"kernel_init": self.kernel_init, "rngs": self.rngs}
        return Conv(channels, features, **arguments, **given)

    def size(self, features: int | str) -> int:
        """`features` as a number."""
        return self.num_classes if isinstance(features, str) else features

    def each(self, sizes: int | list[int]) -> tuple[int, ...]:
        """One number a spatial dimension."""
        dims = len(self.shape) - 1
        if dims not in (1, 2, 3):
            raise UserError("it needs 1, 2 or 3 spatial dimensions and a channel")
        every = (sizes,) * dims if isinstance(sizes, int) else tuple(sizes)
        if len(every) != dims:
            raise UserError(f"{list(every)} must be one number, or {dims}: one a dimension")
        return every

    def padding(self, padding: str | int | list[int]) -> Any:
        """`padding` as the operations take it."""
        return padding.upper() if isinstance(padding, str) else self.each(padding)


class Function(nnx.Module):
    """A layer without weights."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


class Chain(nnx.Module):
    """Convolutions in a row with an activation between them."""

    def __init__(self, convs: Sequence[Conv], between: str):
        self.convs = nnx.List(convs)
        self.between = between

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.convs[0](x)
        for conv in self.convs[1:]:
            x = conv(ACTIVATIONS[self.between](x))
        return x


class WeightedPool(nnx.Module):
    """The mean of each window, times a trainable coefficient, plus a bias; both one a channel.

    The S2 and S4 layers of LeNet-5 (LeCun et al. 1998, section II.B) without their sigmoid. It
    starts as average pooling.
    """

    def __init__(self, channels: int, pool: Callable[[jax.Array], jax.Array]):
        self.scale = nnx.Param(np.ones(channels, np.float32))
        self.bias = nnx.Param(np.zeros(channels, np.float32))
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pool(x) * self.scale[...] + self.bias[...]


def conv(
    site: Site,
    /,
    features: Features,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Padding = "same",
    dilation: Sizes = 1,
    groups: PositiveInt = 1,
    flip_kernel: bool = False,
    factorize: Literal["asymmetric", "smaller"] | None = None,
    between: Activation = "relu",
    use_bias: bool = True,
) -> nnx.Module:
    """Cross-correlation, or with `flip_kernel` true convolution.

    `factorize` makes several layers of it with an activation `between` (Szegedy et al. 2016,
    arXiv:1512.00567, section 3): 1 x n and n x 1 (`asymmetric`), or for an odd n (n − 1) / 2 layers
    of 3 (`smaller`: 5x5 as two 3x3), of which only the last has the stride.
    """
    whole: dict[str, Any] = {
        "kernel_size": site.each(kernel),
        "strides": site.each(stride),
        "padding": site.padding(padding),
        "dilation": site.each(dilation),
    }
    parts = {None: _whole, "asymmetric": _asymmetric, "smaller": _smaller}[factorize](**whole)
    sizes = [site.shape[-1], *[site.size(features)] * len(parts)]
    shared = {"groups": groups, "flip_kernel": flip_kernel, "use_bias": use_bias}
    convs = [
        site.conv(channels, width, **part, **shared)
        for (channels, width), part in zip(itertools.pairwise(sizes), parts, strict=True)
    ]
    return Chain(convs, between) if factorize else convs[0]


def depthwise(
    site: Site,
    /,
    kernel: Sizes,
    multiplier: PositiveInt = 1,
    stride: Sizes = 1,
    padding: Padding = "same",
    dilation: Sizes = 1,
    use_bias: bool = True,
) -> nnx.Module:
    """Each channel convolved by itself, with `multiplier` kernels; a 1x1 `conv` mixes them."""
    channels = site.shape[-1]
    return site.conv(
        channels,
        channels * multiplier,
        kernel_size=site.each(kernel),
        strides=site.each(stride),
        padding=site.padding(padding),
        dilation=site.each(dilation),
        groups=channels,
        use_bias=use_bias,
    )


def whiten(site: Site, /, kernel: Sizes = 2, epsilon: Positive = 5e-4) -> nnx.Module:
    """Patches of the images without correlations, for the first layer; see `whitening`."""
    if len(site.shape) != 3:
        raise UserError("it needs images")
    return Whitening(site.shape[-1], site.each(kernel))


def max_pool(
    site: Site, /, window: Sizes, stride: Sizes | None = None, padding: Padding = "valid"
) -> nnx.Module:
    """The largest value of each window."""
    return Function(_pool(pooling.max_pool, site, window, stride, padding))


def avg_pool(
    site: Site, /, window: Sizes, stride: Sizes | None = None, padding: Padding = "valid"
) -> nnx.Module:
    """The mean of each window."""
    return Function(_pool(pooling.avg_pool, site, window, stride, padding))


def weighted_avg_pool(
    site: Site, /, window: Sizes, stride: Sizes | None = None, padding: Padding = "valid"
) -> nnx.Module:
    """The mean of each window with a trainable coefficient and bias."""
    return WeightedPool(site.shape[-1], _pool(pooling.avg_pool, site, window, stride, padding))


def global_avg_pool(site: Site, /) -> nnx.Module:
    """The mean of each channel."""
    site.each(1)
    return Function(pooling.global_avg_pool)


def global_max_pool(site: Site, /) -> nnx.Module:
    """The largest value of each channel."""
    axes = tuple(range(1, len(site.each(1)) + 1))
    return Function(partial(jnp.max, axis=axes))


def lrn(
    site: Site,
    /,
    size: PositiveInt = 5,
    alpha: Positive = 1e-4,
    beta: Positive = 0.75,
    k: Positive = 2.0,
) -> nnx.Module:
    """Local response normalisation across channels."""
    return Function(partial(local_response_norm, size=size, alpha=alpha, beta=beta, k=k))


def batch_norm(site: Site, /, momentum: Decay = 0.9, epsilon: NonNegative = 1e-5) -> nnx.Module:
    """Batch normalisation."""
    return BatchNorm(site.shape[-1], momentum=momentum, epsilon=epsilon)


def dropout(site: Site, /, rate: Decay) -> nnx.Module:
    """Inverted dropout."""
    return Dropout(rate)


def dense(site: Site, /, features: Features, use_bias: bool = True) -> nnx.Module:
    """A fully connected layer."""
    if len(site.shape) != 1:
        raise UserError("a dense layer needs flat features; put flatten or a global pool before it")
    given: dict[str, Any] = {"kernel_init": site.kernel_init, "rngs": site.rngs}
    return Dense(site.shape[0], site.size(features), use_bias=use_bias, **given)


def flat(site: Site, /) -> nnx.Module:
    """All values of an example in a row."""
    return Function(flatten)


def reshape(site: Site, /, shape: list[PositiveInt]) -> nnx.Module:
    """The same values in another shape, channels last: [64, 1] makes a signal of an 8x8 image."""
    if math.prod(shape) != math.prod(site.shape):
        raise UserError(f"{math.prod(site.shape)} values do not make {by(shape)}")
    return Function(lambda x: x.reshape(x.shape[0], *shape))


def by(shape: Sequence[int]) -> str:
    """`28x28x6`"""
    return "x".join(map(str, shape))


def _activation(name: str) -> Callable[..., nnx.Module]:
    def layer(site: Site, /) -> nnx.Module:
        return Function(ACTIVATIONS[name])

    return layer


KINDS: dict[str, Callable[..., nnx.Module]] = {
    "conv": conv,
    "depthwise": depthwise,
    "whiten": whiten,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "weighted_avg_pool": weighted_avg_pool,
    "global_avg_pool": global_avg_pool,
    "global_max_pool": global_max_pool,
    "lrn": lrn,
    "batch_norm": batch_norm,
    "dropout": dropout,
    "dense": dense,
    "flatten": flat,
    "reshape": reshape,
    **{name: _activation(name) for name in ACTIVATIONS},
}


def _pool(
    function: Callable[..., jax.Array], site: Site, window: Any, stride: Any, padding: Any
) -> Callable[[jax.Array], jax.Array]:
    return partial(
        function,
        window=site.each(window),
        strides=None if stride is None else site.each(stride),
        padding=site.padding(padding),
    )


def _whole(**conv: Any) -> list[dict[str, Any]]:
    return [conv]


def _asymmetric(**conv: Any) -> list[dict[str, Any]]:
    """One convolution a dimension, each along that dimension only."""
    parts = []
    for axis in reversed(range(len(conv["kernel_size"]))):
        neutral = {"kernel_size": 1, "strides": 1, "padding": 0, "dilation": 1}
        part = {
            name: values
            if isinstance(values, str)
            else tuple(v if i == axis else neutral[name] for i, v in enumerate(values))
            for name, values in conv.items()
        }
        parts.append(part)
    return parts


def _smaller(**conv: Any) -> list[dict[str, Any]]:
    """Convolutions of 3 that together see what one of an odd size n sees."""
    sizes, padding = set(conv["kernel_size"]), conv["padding"]
    (size,) = sizes if len(sizes) == 1 else (0,)
    if size < 5 or size % 2 == 0:
        raise UserError("factorize=smaller needs an odd kernel of 5 or more, the same on all sides")
    if not isinstance(padding, str):
        raise UserError("factorize=smaller needs padding=same or valid")
    small = conv | {"kernel_size": (3,) * len(conv["kernel_size"])}
    inner = small | {"strides": (1,) * len(conv["strides"])}
    return [inner] * (size // 2 - 1) + [small]
