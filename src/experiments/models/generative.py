"""Generative models: variational autoencoders and adversarial networks."""

import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.autoencoder import ConvDecoder, ConvEncoder, DenseStack, Norm, normalised
from experiments.models.layers import Dense, Init
from experiments.types import Activation, Likelihood, PositiveInt


def image_shape(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (height, width, channels) of an input; a vector is an image of one row."""
    return input_shape if len(input_shape) == 3 else (1, math.prod(input_shape), 1)


class Variational(nnx.Module):
    """The base of variational autoencoders (Kingma & Welling 2014; Rezende et al. 2014).

    `likelihood` is the distribution of a pixel given the decoder's output; where it has a width,
    one `log_scale` is learned for all pixels. With `conditional` encoder and decoder also read the
    class (Sohn et al. 2015). `decode` gives that output for latents, in the shape of the inputs.
    """

    def __init__(
        self,
        encoder: DenseStack | ConvEncoder,
        latents: int,
        likelihood: Likelihood,
        conditional: bool,
        **init: Unpack[Init],
    ):
        self.encoder = encoder
        self.moments = Dense(encoder.features, 2 * latents, **init)
        scaled = likelihood != "bernoulli"
        self.log_scale = nnx.Param(np.full((), -1.0, np.float32)) if scaled else None
        self.latents, self.likelihood, self.conditional = latents, likelihood, conditional

    def encode(self, x: jax.Array, condition: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return mean and logarithm of the variance of q(z|x), each [batch, latents]."""
        mean, log_variance = jnp.split(self.moments(self.encoder(x, condition)), 2, axis=-1)
        return mean, log_variance


class VAE(Variational):
    """Variational autoencoder of dense layers, the decoder's the encoder's in reverse."""

    def __init__(
        self,
        *,
        hidden: list[PositiveInt],
        latents: PositiveInt,
        activation: Activation,
        likelihood: Likelihood,
        conditional: bool,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        classes, pixels = num_classes if conditional else 0, math.prod(input_shape)
        options: dict[str, Any] = {"activation": activation, "classes": classes, **init}
        encoder = DenseStack([pixels, *hidden], **options)
        super().__init__(encoder, latents, likelihood, conditional, **init)
        self.decoder = DenseStack([latents, *hidden[::-1]], **options)
        self.output = Dense(self.decoder.features, pixels, **init)
        self.shape = image_shape(input_shape)

    def decode(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.output(self.decoder(z, condition)).reshape(z.shape[0], *self.shape)


class ConvVAE(Variational):
    """Variational autoencoder with a `ConvEncoder` and a `ConvDecoder`."""

    def __init__(
        self,
        *,
        channels: list[PositiveInt],
        latents: PositiveInt,
        activation: Activation,
        likelihood: Likelihood,
        conditional: bool,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        classes = num_classes if conditional else 0
        options: dict[str, Any] = {"activation": activation, "classes": classes, **init}
        encoder = ConvEncoder(input_shape, channels, **options)
        super().__init__(encoder, latents, likelihood, conditional, **init)
        self.decoder = ConvDecoder(latents, input_shape, channels, **options)

    def decode(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.decoder(z, condition)


class Generator(nnx.Module):
    """Layers from noise [batch, latents] to images [batch, *shape] in -1..1, by tanh."""

    def __init__(
        self, trunk: DenseStack | ConvDecoder, output: Dense | None, shape: tuple[int, ...]
    ):
        self.trunk, self.output, self.shape = trunk, output, shape

    def __call__(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        x = self.trunk(z, condition)
        x = x if self.output is None else self.output(x)
        return jnp.tanh(x).reshape(z.shape[0], *self.shape)


class Discriminator(nnx.Module):
    """Layers from images [batch, ...] to scores [batch], higher for images that look real."""

    def __init__(self, trunk: DenseStack | ConvEncoder, norm: Norm, **init: Unpack[Init]):
        self.trunk = trunk
        self.output = normalised(Dense, norm, trunk.features, 1, **init)

    def __call__(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.output(self.trunk(x, condition))[:, 0]


class Adversarial(nnx.Module):
    """The base of generative adversarial networks (Goodfellow et al. 2014).

    Images are in -1..1. The generator has batch normalisation, the discriminator
    `discriminator_norm`. With `conditional` both also read the class (Mirza & Osindero 2014).
    """

    def __init__(
        self, generator: Generator, discriminator: Discriminator, latents: int, conditional: bool
    ):
        self.generator, self.discriminator = generator, discriminator
        self.latents, self.conditional = latents, conditional


class GAN(Adversarial):
    """Adversarial network of dense layers, the generator's the discriminator's in reverse."""

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
        **init: Unpack[Init],
    ):
        options: dict[str, Any] = {"classes": num_classes if conditional else 0, **init}
        pixels, norm = math.prod(input_shape), discriminator_norm
        ups, downs = [latents, *hidden[::-1]], [pixels, *hidden]
        up = DenseStack(ups, activation=activation, norm="batch", **options)
        down = DenseStack(downs, activation=discriminator_activation, norm=norm, **options)
        generator = Generator(up, Dense(up.features, pixels, **init), image_shape(input_shape))
        super().__init__(generator, Discriminator(down, norm, **init), latents, conditional)


class DCGAN(Adversarial):
    """Adversarial network of 3x3 convolutions (Radford et al. 2016).

    The discriminator's are strided, the generator has sub-pixel convolutions.
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
        **init: Unpack[Init],
    ):
        options: dict[str, Any] = {"classes": num_classes if conditional else 0, **init}
        sizes, norm = (input_shape, channels), discriminator_norm
        up = ConvDecoder(latents, *sizes, activation=activation, norm="batch", **options)
        down = ConvEncoder(*sizes, activation=discriminator_activation, norm=norm, **options)
        discriminator = Discriminator(down, norm, **init)
        super().__init__(Generator(up, None, input_shape), discriminator, latents, conditional)
