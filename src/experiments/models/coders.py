"""Encoders and decoders: what autoencoders and adversarial networks are put together from."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import ACTIVATIONS, BatchNorm, Conv, Dense, flatten
from experiments.models.spectral import Spectral

Norm = Literal["none", "batch", "spectral"]


class DenseStack(nnx.Module):
    """Dense layers, each with an activation after it: [batch, sizes[0]] to [batch, sizes[-1]]."""

    def __init__(
        self, sizes: Sequence[int], *, activation: str, norm: Norm = "none", **arguments: Any
    ):
        pairs = list(itertools.pairwise(sizes))
        self.layers = nnx.List(linear(*pair, norm, **arguments) for pair in pairs)
        self.norms = nnx.List(BatchNorm(size) for _, size in pairs if norm == "batch")
        self.activation = activation
        self.features = sizes[-1]

    def __call__(self, x: jax.Array) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = ACTIVATIONS[self.activation](x)
        return x


class ConvEncoder(nnx.Module):
    """3x3 convolutions with stride 2: [batch, H, W, C] to [batch, features].

    Every entry of `channels` halves the sides, rounding up. As in Radford et al. 2016 the first
    layer has no batch normalisation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        *,
        activation: str,
        norm: Norm = "none",
        **arguments: Any,
    ):
        sizes = [input_shape[-1], *channels]
        strided: dict[str, Any] = {"strides": 2, **arguments}
        spectral = norm == "spectral"
        pairs = list(itertools.pairwise(sizes))
        convs = [Conv(*pair, (3, 3), use_bias=not spectral, **strided) for pair in pairs]
        self.layers = nnx.List(
            Spectral(conv, pair[1]) if spectral else conv
            for conv, pair in zip(convs, pairs, strict=True)
        )
        self.norms = nnx.List(BatchNorm(size) for size in channels[1:] if norm == "batch")
        self.activation = activation
        self.features = math.prod(halved(input_shape[:2], len(channels))[-1]) * sizes[-1]

    def __call__(self, x: jax.Array) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index and self.norms:
                x = self.norms[index - 1](x)
            x = ACTIVATIONS[self.activation](x)
        return flatten(x)


class ConvDecoder(nnx.Module):
    """The way back: [batch, in_features] to [batch, H, W, C], doubling the sides at each layer.

    Sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158): a 3x3 convolution at the lower
    resolution gives four values a place, which is a transposed convolution of 6x6 with stride 2.
    """

    def __init__(
        self,
        in_features: int,
        output_shape: Sequence[int],
        channels: Sequence[int],
        *,
        activation: str,
        norm: Norm = "none",
        **arguments: Any,
    ):
        self.sides = halved(output_shape[:2], len(channels))[::-1]
        sizes = [*reversed(channels), output_shape[-1]]
        self.start = Dense(in_features, math.prod(self.sides[0]) * sizes[0], **arguments)
        self.layers = nnx.List(
            Conv(before, 4 * after, (3, 3), **arguments)
            for before, after in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(BatchNorm(size) for size in sizes[:-1] if norm == "batch")
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.start(x).reshape(x.shape[0], *self.sides[0], -1)
        for index, (layer, side) in enumerate(zip(self.layers, self.sides[1:], strict=True)):
            if self.norms:
                x = self.norms[index](x)
            x = doubled(layer(ACTIVATIONS[self.activation](x)))[:, : side[0], : side[1]]
        return x


def halved(sides: Sequence[int], times: int) -> list[tuple[int, ...]]:
    """The sides of an image, and after each of so many halvings that round up."""
    steps = [tuple(sides)]
    for _ in range(times):
        steps.append(tuple(-(-side // 2) for side in steps[-1]))
    return steps


def doubled(x: jax.Array) -> jax.Array:
    """[batch, H, W, 4 C] to [batch, 2 H, 2 W, C]: four channels become a square of four pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def beside(x: jax.Array, condition: jax.Array | None) -> jax.Array:
    """Features [batch, n] with a one-hot class [batch, classes] beside them, if there is one."""
    return x if condition is None else jnp.concatenate([x, condition.astype(x.dtype)], -1)


def as_channels(x: jax.Array, condition: jax.Array | None) -> jax.Array:
    """Images with a plane for each class, all ones for the one they are of, if there is one."""
    if condition is None:
        return x
    planes = jnp.broadcast_to(condition[:, None, None, :], (*x.shape[:-1], condition.shape[-1]))
    return jnp.concatenate([x, planes.astype(x.dtype)], axis=-1)


def linear(in_features: int, features: int, norm: Norm, **arguments: Any) -> nnx.Module:
    """A dense layer, spectrally normalised if `norm` says so."""
    if norm != "spectral":
        return Dense(in_features, features, **arguments)
    return Spectral(Dense(in_features, features, use_bias=False, **arguments), features)
