"""Adversarial networks: a generator and a discriminator (Goodfellow et al. 2014)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.autoencoder import check_image
from experiments.models.coders import (
    ConvDecoder,
    ConvEncoder,
    DenseStack,
    Norm,
    as_channels,
    beside,
    linear,
)
from experiments.models.layers import Dense, flatten
from experiments.types import Activation, PositiveInt


class Adversarial(nnx.Module):
    """What is common to the two of them: the parts `generator` and `discriminator`.

    Images are in -1..1. `discriminator_norm` is that of the discriminator's layers; the generator
    has batch normalisation. A `conditional` one is told the class at both ends (Mirza & Osindero
    2014).
    """

    def __init__(self, generator: nnx.Module, discriminator: nnx.Module, latents: int, told: bool):
        self.generator, self.discriminator = generator, discriminator
        self.latents, self.conditional = latents, told

    def generate(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Images [batch, H, W, C] of noise [batch, latents]."""
        return self.generator(beside(z, condition))  # type: ignore[operator]


class GAN(Adversarial):
    """Dense generator and discriminator with the same hidden layers, the generator's in reverse."""

    def __init__(
        self,
        *,
        hidden: list[PositiveInt],
        latents: PositiveInt,
        activation: Activation,
        discriminator_activation: Activation,
        discriminator_norm: Norm,
        conditional: bool,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        told = num_classes if conditional else 0
        sizes = [math.prod(input_shape), *hidden]
        sizes[0] += told
        up = DenseStack(
            [latents + told, *hidden[::-1]], activation=activation, norm="batch", **given
        )
        down = DenseStack(
            sizes, activation=discriminator_activation, norm=discriminator_norm, **given
        )
        generator = Generator(up, input_shape, **given)
        super().__init__(generator, Score(down, discriminator_norm, **given), latents, conditional)

    def discriminate(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        """How real the images are: scores [batch]."""
        return self.discriminator(beside(flatten(x), condition))  # type: ignore[operator]


class DCGAN(Adversarial):
    """Convolutional generator and discriminator (Radford et al. 2016).

    With 3x3 kernels, strided in the discriminator and sub-pixel convolutions in the generator.
    """

    def __init__(
        self,
        *,
        channels: list[PositiveInt],
        latents: PositiveInt,
        activation: Activation,
        discriminator_activation: Activation,
        discriminator_norm: Norm,
        conditional: bool,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        check_image(input_shape)
        told = num_classes if conditional else 0
        up = ConvDecoder(
            latents + told, input_shape, channels, activation=activation, norm="batch", **given
        )
        seen = (*input_shape[:2], input_shape[2] + told)
        down = ConvEncoder(
            seen, channels, activation=discriminator_activation, norm=discriminator_norm, **given
        )
        score = Score(down, discriminator_norm, **given)
        super().__init__(Bounded(up), score, latents, conditional)

    def discriminate(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        """How real the images are: scores [batch]."""
        return self.discriminator(as_channels(x, condition))  # type: ignore[operator]


class Generator(nnx.Module):
    """Features [batch, n] to images in -1..1."""

    def __init__(self, trunk: DenseStack, shape: tuple[int, ...], **arguments: Any):
        self.trunk = trunk
        self.output = Dense(trunk.features, math.prod(shape), **arguments)
        self.shape = shape

    def __call__(self, z: jax.Array) -> jax.Array:
        return jnp.tanh(self.output(self.trunk(z))).reshape(z.shape[0], *self.shape)


class Bounded(nnx.Module):
    """A decoder whose pixels are in -1..1."""

    def __init__(self, trunk: ConvDecoder):
        self.trunk = trunk

    def __call__(self, z: jax.Array) -> jax.Array:
        return jnp.tanh(self.trunk(z))


class Score(nnx.Module):
    """One number [batch] for each example."""

    def __init__(self, trunk: DenseStack | ConvEncoder, norm: Norm, **arguments: Any):
        self.trunk = trunk
        self.output = linear(trunk.features, 1, norm, **arguments)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.trunk(x))[:, 0]
