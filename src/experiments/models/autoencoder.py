"""Autoencoders, and the encoders and decoders that generative models share with them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import ACTIVATIONS, BatchNorm, Conv, Dense, Init, Spectral, flatten
from experiments.types import Activation, PositiveInt

Norm = Literal["none", "batch", "spectral"]


class Autoencoder(nnx.Module):
    """Dense layers to a code of `latents` units and, in reverse order of sizes, back.

    [batch, ...] to [batch, ...], before the output head. The encoder's layers are `hidden.0`,
    `hidden.1`, ... like those of an `MLP`, so that an MLP with `hidden=[..., latents]` can start
    from them. With `tied` weights the decoder uses the encoder's, transposed (Hinton &
    Salakhutdinov 2006; Vincent et al. 2010, section 2.2).
    """

    def __init__(
        self,
        *,
        hidden: list[PositiveInt],
        latents: PositiveInt,
        activation: Activation,
        code_activation: Activation,
        tied: bool,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        sizes = [math.prod(input_shape), *hidden, latents]
        pairs = list(itertools.pairwise(sizes))
        self.hidden = nnx.List(Dense(*p, **init) for p in pairs)
        self.decoder = nnx.List(
            Offset(before) if tied else Dense(after, before, **init) for before, after in pairs
        )
        self.activations = [activation] * len(hidden) + [code_activation]
        self.tied = tied

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.decode(self.encode(x)).reshape(x.shape)

    def encode(self, x: jax.Array) -> jax.Array:
        """Return the code [batch, latents]."""
        x = flatten(x)
        for index in range(len(self.hidden)):
            x = self.up(x, index)
        return x

    def decode(self, code: jax.Array) -> jax.Array:
        """Return the outputs [batch, features] of a code."""
        for index in reversed(range(len(self.hidden))):
            code = self.down(code, index)
            if index:
                code = ACTIVATIONS[self.activations[index - 1]](code)
        return code

    def up(self, x: jax.Array, index: int) -> jax.Array:
        """Return the output of the encoder's layer `index`."""
        return ACTIVATIONS[self.activations[index]](self.hidden[index](x))

    def down(self, code: jax.Array, index: int) -> jax.Array:
        """Return the output, before its activation, of the decoder's layer that inverts `index`."""
        if self.tied:
            code = code @ self.hidden[index].kernel[...].T
        return self.decoder[index](code)

    def input_of(self, x: jax.Array, index: int) -> jax.Array:
        """Return what layer `index` reads; no gradient passes to the layers below."""
        x = flatten(x)
        for below in range(index):
            x = self.up(x, below)
        return jax.lax.stop_gradient(x)

    def restored(self, x: jax.Array, index: int) -> jax.Array:
        """Return the reconstruction of a layer's input by that layer alone (Bengio et al. 2007).

        For layer 0 it is before the output head.
        """
        back = self.down(self.up(x, index), index)
        return ACTIVATIONS[self.activations[index - 1]](back) if index else back


class ConvAutoencoder(nnx.Module):
    """Strided convolutions to a code of `latents` units, sub-pixel convolutions back.

    [batch, H, W, C] to [batch, H, W, C], before the output head.
    """

    def __init__(
        self,
        *,
        channels: list[PositiveInt],
        latents: PositiveInt,
        activation: Activation,
        code_activation: Activation,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        self.encoder = ConvEncoder(input_shape, channels, activation=activation, **init)
        self.code = Dense(self.encoder.features, latents, **init)
        self.decoder = ConvDecoder(latents, input_shape, channels, activation=activation, **init)
        self.code_activation = code_activation

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.decode(self.encode(x))

    def encode(self, x: jax.Array) -> jax.Array:
        """Return the code [batch, latents]."""
        return ACTIVATIONS[self.code_activation](self.code(self.encoder(x)))

    def decode(self, code: jax.Array) -> jax.Array:
        """Return the outputs [batch, H, W, C] of a code."""
        return self.decoder(code)


class Offset(nnx.Module):
    """A bias that is added: all that a decoder's layer with tied weights learns by itself."""

    def __init__(self, features: int):
        self.bias = nnx.Param(np.zeros(features, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.bias[...]


class DenseStack(nnx.Module):
    """Dense layers, each with an activation after it: [batch, ...] to [batch, sizes[-1]].

    An input has sizes[0] values and a one-hot class of `classes` values.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        classes: int = 0,
        activation: str,
        norm: Norm = "none",
        **init: Unpack[Init],
    ):
        sizes = [sizes[0] + classes, *sizes[1:]]
        pairs = list(itertools.pairwise(sizes))
        self.layers = nnx.List(normalised(Dense, norm, *pair, **init) for pair in pairs)
        self.norms = nnx.List(BatchNorm(size) for _, size in pairs if norm == "batch")
        self.activation = activation
        self.features = sizes[-1]

    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        x = with_class(flatten(x), condition)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = ACTIVATIONS[self.activation](x)
        return x


class ConvEncoder(nnx.Module):
    """3x3 convolutions with stride 2: [batch, H, W, C] to [batch, features].

    Each divides the sides by two, rounding up; `channels` are their features. As in Radford et al.
    2016 the first layer has no batch normalisation. A class is one more input channel per class.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        *,
        classes: int = 0,
        activation: str,
        norm: Norm = "none",
        **init: Unpack[Init],
    ):
        if len(input_shape) != 3:
            raise UserError("this model is made of 2-D convolutions: choose data with images")
        sizes = [input_shape[-1] + classes, *channels]
        self.layers = nnx.List(
            normalised(Conv, norm, *pair, (3, 3), strides=2, **init)
            for pair in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(BatchNorm(size) for size in channels[1:] if norm == "batch")
        self.activation = activation
        self.features = math.prod(halved(input_shape[:2], len(channels))[-1]) * sizes[-1]

    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        x = with_class(x, condition)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index and self.norms:
                x = self.norms[index - 1](x)
            x = ACTIVATIONS[self.activation](x)
        return flatten(x)


class ConvDecoder(nnx.Module):
    """Sub-pixel convolutions: [batch, in_features] to [batch, H, W, C], mirroring a `ConvEncoder`.

    A 3x3 convolution at the lower resolution gives four values per position, which become 2x2
    pixels (Shi et al. 2016, arXiv:1609.05158): a transposed convolution of 6x6 with stride 2.
    """

    def __init__(
        self,
        in_features: int,
        output_shape: Sequence[int],
        channels: Sequence[int],
        *,
        classes: int = 0,
        activation: str,
        norm: Norm = "none",
        **init: Unpack[Init],
    ):
        self.sides = halved(output_shape[:2], len(channels))[::-1]
        sizes = [*reversed(channels), output_shape[-1]]
        pixels = math.prod(self.sides[0])
        self.start = Dense(in_features + classes, pixels * sizes[0], **init)
        self.layers = nnx.List(
            Conv(before, 4 * after, (3, 3), **init) for before, after in itertools.pairwise(sizes)
        )
        self.norms = nnx.List(BatchNorm(size) for size in sizes[:-1] if norm == "batch")
        self.activation = activation

    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        x = self.start(with_class(x, condition)).reshape(x.shape[0], *self.sides[0], -1)
        for index, (layer, side) in enumerate(zip(self.layers, self.sides[1:], strict=True)):
            if self.norms:
                x = self.norms[index](x)
            x = doubled(layer(ACTIVATIONS[self.activation](x)))[:, : side[0], : side[1]]
        return x


def halved(sides: Sequence[int], times: int) -> list[tuple[int, ...]]:
    """Return the sides of an image, and those after 1 to `times` divisions by two, rounded up."""
    steps = [tuple(sides)]
    for _ in range(times):
        steps.append(tuple(-(-side // 2) for side in steps[-1]))
    return steps


def doubled(x: jax.Array) -> jax.Array:
    """Return [batch, H, W, 4 C] as [batch, 2 H, 2 W, C]: four channels become 2x2 pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def with_class(x: jax.Array, condition: jax.Array | None) -> jax.Array:
    """Return [batch, ..., n] with a one-hot class [batch, classes], if any, on the last axis."""
    if condition is None:
        return x
    condition = jnp.expand_dims(condition.astype(x.dtype), range(1, x.ndim - 1))
    planes = jnp.broadcast_to(condition, (*x.shape[:-1], condition.shape[-1]))
    return jnp.concatenate([x, planes], axis=-1)


def normalised(kind: type[Dense | Conv], norm: Norm, *sizes: Any, **arguments: Any) -> nnx.Module:
    """Return a linear layer, spectrally normalised if `norm` is "spectral"."""
    layer = kind(*sizes, use_bias=norm != "spectral", **arguments)
    return Spectral(layer) if norm == "spectral" else layer
