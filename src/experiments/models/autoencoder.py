"""Autoencoders: what comes out is to be what went in, by way of a narrow code."""

import itertools
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.errors import UserError
from experiments.models.coders import ConvDecoder, ConvEncoder
from experiments.models.layers import ACTIVATIONS, Dense, flatten
from experiments.types import Activation, PositiveInt


class Autoencoder(nnx.Module):
    """Dense layers down to a code of `latents` units and the same sizes back.

    [batch, ...] to [batch, ...], before the output head. `hidden` and the code are the layers
    `hidden.0`, `hidden.1`, ... as those of an `MLP` are, so that one with `hidden=[..., latents]`
    can start from them. With `tied` weights the decoder's are those of the encoder, transposed
    (Hinton & Salakhutdinov 2006; Vincent et al. 2010, section 2.2).
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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        sizes = [math.prod(input_shape), *hidden, latents]
        pairs = list(itertools.pairwise(sizes))
        self.hidden = nnx.List(Dense(*p, kernel_init=kernel_init, rngs=rngs) for p in pairs)
        self.decoder = nnx.List(
            Offset(before) if tied else Dense(after, before, kernel_init=kernel_init, rngs=rngs)
            for before, after in pairs
        )
        self.activations = [activation] * len(hidden) + [code_activation]
        self.tied = tied

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.decode(self.encode(x)).reshape(x.shape)

    def encode(self, x: jax.Array) -> jax.Array:
        """The code [batch, latents]."""
        x = flatten(x)
        for index in range(len(self.hidden)):
            x = self.up(x, index)
        return x

    def decode(self, code: jax.Array) -> jax.Array:
        """The outputs [batch, features] of a code."""
        for index in reversed(range(len(self.hidden))):
            code = self.down(code, index)
            if index:
                code = ACTIVATIONS[self.activations[index - 1]](code)
        return code

    def up(self, x: jax.Array, index: int) -> jax.Array:
        """Layer `index` of the encoder."""
        return ACTIVATIONS[self.activations[index]](self.hidden[index](x))

    def down(self, code: jax.Array, index: int) -> jax.Array:
        """The layer of the decoder that undoes layer `index`, before its activation."""
        if self.tied:
            code = code @ self.hidden[index].kernel[...].T
        return self.decoder[index](code)

    def restored(self, x: jax.Array, index: int) -> tuple[jax.Array, jax.Array]:
        """(input of layer `index`, what that layer alone makes of it and back), for the first one
        before the output head; the layers below are constants (Bengio et al. 2007)."""
        x = flatten(x)
        for below in range(index):
            x = self.up(x, below)
        x = jax.lax.stop_gradient(x)
        back = self.down(self.up(x, index), index)
        return x, ACTIVATIONS[self.activations[index - 1]](back) if index else back


class ConvAutoencoder(nnx.Module):
    """Strided convolutions down to a code of `latents` units, sub-pixel convolutions back.

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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        check_image(input_shape)
        self.encoder = ConvEncoder(input_shape, channels, activation=activation, **given)
        self.code = Dense(self.encoder.features, latents, **given)
        self.decoder = ConvDecoder(latents, input_shape, channels, activation=activation, **given)
        self.code_activation = code_activation

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.decode(self.encode(x))

    def encode(self, x: jax.Array) -> jax.Array:
        """The code [batch, latents]."""
        return ACTIVATIONS[self.code_activation](self.code(self.encoder(x)))

    def decode(self, code: jax.Array) -> jax.Array:
        """The outputs [batch, H, W, C] of a code."""
        return self.decoder(code)


class Offset(nnx.Module):
    """Adds a bias: what is left of a layer whose weights are those of another one."""

    def __init__(self, features: int):
        self.bias = nnx.Param(np.zeros(features, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.bias[...]


def check_image(input_shape: tuple[int, ...]) -> None:
    """Raises `UserError` unless the inputs are images [H, W, C]."""
    if len(input_shape) != 3:
        raise UserError("this model is made of 2-D convolutions: choose data with images")
