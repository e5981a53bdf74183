"""Generative models: variational autoencoders and adversarial networks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.autoencoder import ConvDecoder, ConvEncoder, DenseStack, Norm, linear
from experiments.models.layers import Dense
from experiments.types import Activation, Initializer, Likelihood, PositiveInt


class Variational(nnx.Module):
    """The base of variational autoencoders (Kingma & Welling 2014; Rezende et al. 2014).

    `likelihood` is the distribution of a pixel given the decoder's output; where it has a width,
    one `log_scale` is learned for all pixels. With `conditional` encoder and decoder also read the
    class (Sohn et al. 2015).
    """

    def __init__(
        self,
        encoder: DenseStack | ConvEncoder,
        latents: int,
        likelihood: Likelihood,
        conditional: bool,
        **arguments: Any,
    ):
        self.encoder = encoder
        self.moments = Dense(encoder.features, 2 * latents, **arguments)
        scaled = likelihood != "bernoulli"
        self.log_scale = nnx.Param(np.full((), -1.0, np.float32)) if scaled else None
        self.latents, self.likelihood, self.conditional = latents, likelihood, conditional

    def encode(self, x: jax.Array, condition: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return mean and logarithm of the variance of q(z|x), each [batch, latents]."""
        mean, log_variance = jnp.split(self.moments(self.encoder(x, condition)), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Return the parameter of each pixel's likelihood, in the shape of the inputs."""
        raise NotImplementedError


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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        classes = num_classes if conditional else 0
        options = {"classes": classes, "activation": activation, **given}
        pixels = math.prod(input_shape)
        encoder = DenseStack([pixels, *hidden], **options)
        super().__init__(encoder, latents, likelihood, conditional, **given)
        self.decoder = DenseStack([latents, *hidden[::-1]], **options)
        self.output = Dense(self.decoder.features, pixels, **given)
        self.shape = input_shape

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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        classes = num_classes if conditional else 0
        options = {"classes": classes, "activation": activation, **given}
        encoder = ConvEncoder(input_shape, channels, **options)
        super().__init__(encoder, latents, likelihood, conditional, **given)
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
    """Layers from images to one score per example: [batch, ...] to [batch]."""

    def __init__(self, trunk: DenseStack | ConvEncoder, norm: Norm, **arguments: Any):
        self.trunk = trunk
        self.output = linear(trunk.features, 1, norm, **arguments)

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

    def generate(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Return images [batch, H, W, C] of noise [batch, latents]."""
        return self.generator(z, condition)

    def discriminate(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Return scores [batch], higher for images that look real."""
        return self.discriminator(x, condition)


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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        classes = num_classes if conditional else 0
        options = {"classes": classes, **given}
        pixels, norm = math.prod(input_shape), discriminator_norm
        sizes = [latents, *hidden[::-1]]
        up = DenseStack(sizes, activation=activation, norm="batch", **options)
        sizes = [pixels, *hidden]
        down = DenseStack(sizes, activation=discriminator_activation, norm=norm, **options)
        generator = Generator(up, Dense(up.features, pixels, **given), input_shape)
        super().__init__(generator, Discriminator(down, norm, **given), latents, conditional)


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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        given: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        classes = num_classes if conditional else 0
        options = {"classes": classes, **given}
        sizes, norm = (input_shape, channels), discriminator_norm
        up = ConvDecoder(latents, *sizes, activation=activation, norm="batch", **options)
        down = ConvEncoder(*sizes, activation=discriminator_activation, norm=norm, **options)
        discriminator = Discriminator(down, norm, **given)
        super().__init__(Generator(up, None, input_shape), discriminator, latents, conditional)
