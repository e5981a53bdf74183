"""The layers of `model=cnn`: functions from a `Site` and arguments to a module."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.errors import UserError
from experiments.models import layers
from experiments.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    Init,
    WeightedPool,
    local_response_norm,
)
from experiments.ops import convolution, pooling
from experiments.types import Activation, Decay, NonNegative, NonNegativeInt, Positive, PositiveInt

Features = PositiveInt | Literal["classes"]  # "classes": the number that the data have
Sizes = PositiveInt | list[PositiveInt]  # one number, or one per spatial dimension
Padding = Literal["same", "valid"] | NonNegativeInt | list[NonNegativeInt]


@dataclass(frozen=True)
class Site:
    """The `shape` of a layer's input, without the batch, and the arguments that all layers get."""

    shape: tuple[int, ...]
    num_classes: int
    init: Init

    def size(self, features: int | str) -> int:
        """Return `features` as a number."""
        return self.num_classes if isinstance(features, str) else features

    def each(self, sizes: int | list[int]) -> tuple[int, ...]:
        """Return one number per spatial dimension."""
        dims = len(self.shape) - 1
        if dims not in (1, 2, 3):
            raise UserError("it needs 1, 2 or 3 spatial dimensions and a channel")
        every = (sizes,) * dims if isinstance(sizes, int) else tuple(sizes)
        if len(every) != dims:
            raise UserError(f"{list(every)} must be one number, or {dims}: one per dimension")
        return every

    def padding(self, padding: str | int | list[int]) -> Any:
        """Return `padding` in the form that `ops` takes."""
        return padding.upper() if isinstance(padding, str) else self.each(padding)


class Function(nnx.Module):
    """A layer without weights."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]):
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


class Chain(nnx.Module):
    """Consecutive convolutions with an activation between them."""

    def __init__(self, convs: Sequence[Conv], between: str):
        self.convs = nnx.List(convs)
        self.between = between

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.convs[0](x)
        for conv in self.convs[1:]:
            x = conv(ACTIVATIONS[self.between](x))
        return x


class ConvTranspose(nnx.Module):
    """A transposed convolution and a bias: [batch, *spatial, in_features] to [..., features]."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: Sequence[int],
        *,
        strides: Sequence[int],
        padding: Any,
        use_bias: bool,
        **init: Unpack[Init],
    ):
        self.kernel = nnx.Param(layers.drawn((*kernel_size, in_features, features), **init))
        self.bias = nnx.Param(np.zeros(features, np.float32)) if use_bias else None
        self.strides, self.padding = strides, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        options = {"strides": self.strides, "padding": self.padding}
        y = convolution.conv_transpose(x, self.kernel[...], **options)
        return y if self.bias is None else y + self.bias[...]


class OfData(nnx.Variable):
    """State that is computed from the training data and stays constant."""


class Whitening(nnx.Module):
    """A convolution with fixed filters and outputs that are uncorrelated on the training images.

    [batch, H, W, C] to [batch, H − h + 1, W − w + 1, 2 h w C]: the projections on the eigenvectors
    of the patches' covariance, each divided by √(eigenvalue + `epsilon`), and the same negated,
    plus a bias, which alone is trained (Jordan 2024, arXiv:2404.00498, section 3.2). The filters
    are 0 until `CNN.state_of_data` replaces them.
    """

    def __init__(self, channels: int, kernel_size: Sequence[int]):
        features = 2 * channels * int(np.prod(kernel_size))
        self.kernel = OfData(np.zeros((*kernel_size, channels, features), np.float32))
        self.bias = nnx.Param(np.zeros(features, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        return convolution.conv(x, kernel, strides=1, padding="VALID") + self.bias[...]


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
    """A cross-correlation, or with `flip_kernel` a true convolution.

    `factorize` divides it into several layers with an activation `between` (Szegedy et al. 2016,
    arXiv:1512.00567, section 3): 1 x n and n x 1 (`asymmetric`), or for an odd n (n − 1) / 2 layers
    of 3 (`smaller`: 5x5 as two 3x3), of which only the last has the stride.
    """
    whole: dict[str, Any] = {
        "kernel_size": site.each(kernel),
        "strides": site.each(stride),
        "padding": site.padding(padding),
        "dilation": site.each(dilation),
    }
    factorized = {None: lambda conv: [conv], "asymmetric": _asymmetric, "smaller": _smaller}
    parts = factorized[factorize](whole)
    sizes = [site.shape[-1], *[site.size(features)] * len(parts)]
    shared: dict[str, Any] = {"groups": groups, "flip_kernel": flip_kernel, "use_bias": use_bias}
    convs = []
    for (channels, width), part in zip(itertools.pairwise(sizes), parts, strict=True):
        if channels % groups or width % groups:
            raise UserError(f"groups={groups} does not divide {channels} and {width} channels")
        convs.append(Conv(channels, width, **part, **shared, **site.init))
    return Chain(convs, between) if factorize else convs[0]


def conv_transpose(
    site: Site,
    /,
    features: Features,
    kernel: Sizes,
    stride: Sizes = 2,
    padding: Padding = "same",
    use_bias: bool = True,
) -> nnx.Module:
    """A transposed convolution; `same` makes the sides exactly `stride` times as long."""
    return ConvTranspose(
        site.shape[-1],
        site.size(features),
        site.each(kernel),
        strides=site.each(stride),
        padding=site.padding(padding),
        use_bias=use_bias,
        **site.init,
    )


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
    """A depthwise convolution: each channel by itself, with `multiplier` kernels."""
    channels = site.shape[-1]
    features = channels * multiplier
    return conv(
        site, features, kernel, stride, padding, dilation, groups=channels, use_bias=use_bias
    )


def whiten(site: Site, /, kernel: Sizes = 2, epsilon: Positive = 5e-4) -> nnx.Module:
    """A `Whitening`, for the first layer; `epsilon` is for its filters."""
    if len(site.shape) != 3:
        raise UserError("it needs images")
    return Whitening(site.shape[-1], site.each(kernel))


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


def group_norm(site: Site, /, groups: PositiveInt, epsilon: NonNegative = 1e-5) -> nnx.Module:
    """Normalisation of each example by itself, in `groups` of channels."""
    if site.shape[-1] % groups:
        raise UserError(f"groups={groups} does not divide {site.shape[-1]} channels")
    return GroupNorm(site.shape[-1], groups, epsilon=epsilon)


def layer_norm(site: Site, /, epsilon: NonNegative = 1e-5) -> nnx.Module:
    """Layer normalisation: over all values of an example."""
    return group_norm(site, 1, epsilon)


def dropout(site: Site, /, rate: Decay) -> nnx.Module:
    """Inverted dropout."""
    return Dropout(rate)


def dense(site: Site, /, features: Features, use_bias: bool = True) -> nnx.Module:
    """A fully connected layer."""
    if len(site.shape) != 1:
        raise UserError("a dense layer needs flat features; put flatten or a global pool before it")
    return Dense(site.shape[0], site.size(features), use_bias=use_bias, **site.init)


def flatten(site: Site, /) -> nnx.Module:
    """All values of an example as one vector."""
    return Function(layers.flatten)


def reshape(site: Site, /, shape: list[PositiveInt]) -> nnx.Module:
    """The values in another shape, channels last: [64, 1] makes a signal of an 8x8 image."""
    if math.prod(shape) != math.prod(site.shape):
        raise UserError(f"{math.prod(site.shape)} values do not make {by(shape)}")
    return Function(lambda x: x.reshape(x.shape[0], *shape))


def by(shape: Sequence[int]) -> str:
    """Return a shape as text such as `28x28x6`."""
    return "x".join(map(str, shape))


def _activation(name: str) -> Callable[..., nnx.Module]:
    def layer(site: Site, /) -> nnx.Module:
        return Function(ACTIVATIONS[name])

    return layer


def _global(reduce: Callable[..., jax.Array]) -> Callable[..., nnx.Module]:
    def layer(site: Site, /) -> nnx.Module:
        return Function(partial(reduce, axis=tuple(range(1, len(site.each(1)) + 1))))

    return layer


def _pool(
    function: Callable[..., jax.Array], *, weighted: bool = False
) -> Callable[..., nnx.Module]:
    def layer(
        site: Site, /, window: Sizes, stride: Sizes | None = None, padding: Padding = "valid"
    ) -> nnx.Module:
        strides = None if stride is None else site.each(stride)
        given = {"window": site.each(window), "padding": site.padding(padding)}
        pool = partial(function, strides=strides, **given)
        return WeightedPool(site.shape[-1], pool) if weighted else Function(pool)

    return layer


NORMS = (lrn, batch_norm, layer_norm, group_norm)
BY_NAME = (conv, conv_transpose, depthwise, whiten, *NORMS, dropout, dense, flatten, reshape)
KINDS: dict[str, Callable[..., nnx.Module]] = {
    "max_pool": _pool(pooling.max_pool),
    "avg_pool": _pool(pooling.avg_pool),
    "weighted_avg_pool": _pool(pooling.avg_pool, weighted=True),
    "global_avg_pool": _global(jnp.mean),
    "global_max_pool": _global(jnp.max),
    **{layer.__name__: layer for layer in BY_NAME},
    **{name: _activation(name) for name in ACTIVATIONS},
}


def _asymmetric(conv: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one convolution per dimension, each along that dimension only."""
    neutral = {"kernel_size": 1, "strides": 1, "padding": 0, "dilation": 1}

    def along(axis: int, name: str, values: Any) -> Any:
        if isinstance(values, str):
            return values
        return tuple(v if i == axis else neutral[name] for i, v in enumerate(values))

    axes = reversed(range(len(conv["kernel_size"])))
    return [{n: along(axis, n, values) for n, values in conv.items()} for axis in axes]


def _smaller(conv: dict[str, Any]) -> list[dict[str, Any]]:
    """Return convolutions of 3 that together have the window of one of an odd size n."""
    sizes, padding = set(conv["kernel_size"]), conv["padding"]
    (size,) = sizes if len(sizes) == 1 else (0,)
    if size < 5 or size % 2 == 0:
        raise UserError("factorize=smaller needs an odd kernel of 5 or more, the same on all sides")
    if not isinstance(padding, str):
        raise UserError("factorize=smaller needs padding=same or valid")
    small = conv | {"kernel_size": (3,) * len(conv["kernel_size"])}
    inner = small | {"strides": (1,) * len(conv["strides"])}
    return [inner] * (size // 2 - 1) + [small]
