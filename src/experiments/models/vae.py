"""Variational autoencoders (Kingma & Welling 2014; Rezende et al. 2014)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.autoencoder import check_image
from experiments.models.coders import ConvDecoder, ConvEncoder, DenseStack, as_channels, beside
from experiments.models.layers import Dense, flatten
from experiments.objectives.likelihoods import Likelihood
from experiments.types import Activation, PositiveInt


class Variational(nnx.Module):
    """What is common to the two of them; a subclass has `trunk` and `decode`.

    `likelihood` says what the decoder's outputs mean; with a width to learn, one for all pixels,
    that is `log_scale`. A `conditional` one is told the class at both ends (Sohn et al. 2015).
    """

    def __init__(
        self,
        features: int,
        latents: int,
        likelihood: Likelihood,
        conditional: bool,
        **arguments: Any,
    ):
        self.moments = Dense(features, 2 * latents, **arguments)
        scaled = likelihood != "bernoulli"
        self.log_scale = nnx.Param(np.full((), -1.0, np.float32)) if scaled else None
        self.latents, self.likelihood, self.conditional = latents, likelihood, conditional

    def encode(self, x: jax.Array, condition: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Mean and logarithm of the variance of q(z|x), each [batch, latents]."""
        mean, log_variance = jnp.split(self.moments(self.trunk(x, condition)), 2, axis=-1)
        return mean, log_variance

    def trunk(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Features [batch, n] of the inputs."""
        raise NotImplementedError

    def decode(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        """What the likelihood of each pixel is made of, in the shape of the inputs."""
        raise NotImplementedError


class VAE(Variational):
    """Dense encoder and decoder with the same hidden layers, the decoder's in reverse."""

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
        told = num_classes if conditional else 0
        pixels = math.prod(input_shape)
        encoder = DenseStack([pixels + told, *hidden], activation=activation, **given)
        super().__init__(encoder.features, latents, likelihood, conditional, **given)
        self.encoder = encoder
        self.decoder = DenseStack([latents + told, *hidden[::-1]], activation=activation, **given)
        self.output = Dense(self.decoder.features, pixels, **given)
        self.shape = input_shape

    def trunk(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.encoder(beside(flatten(x), condition))

    def decode(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.output(self.decoder(beside(z, condition))).reshape(z.shape[0], *self.shape)


class ConvVAE(Variational):
    """Strided convolutions in the encoder, sub-pixel convolutions in the decoder."""

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
        check_image(input_shape)
        told = num_classes if conditional else 0
        seen = (*input_shape[:2], input_shape[2] + told)
        encoder = ConvEncoder(seen, channels, activation=activation, **given)
        super().__init__(encoder.features, latents, likelihood, conditional, **given)
        self.encoder = encoder
        self.decoder = ConvDecoder(
            latents + told, input_shape, channels, activation=activation, **given
        )

    def trunk(self, x: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.encoder(as_channels(x, condition))

    def decode(self, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        return self.decoder(beside(z, condition))
