"""Likelihoods of pixels in 0..1, given what a decoder says of each.

Each is a function (outputs, log_scale, targets), all of one shape but the scalar `log_scale`, the
logarithm of a width shared by all pixels; it gives the log-likelihood of each pixel in nats.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Likelihood = Literal["bernoulli", "gaussian", "logistic"]

LEVELS = 256  # values that a pixel can have


def bernoulli(outputs: jax.Array, log_scale: jax.Array | None, targets: jax.Array) -> jax.Array:
    """log p = x z − log(1 + eᶻ): each pixel is on with probability σ(z)."""
    return targets * outputs - jax.nn.softplus(outputs)


def gaussian(outputs: jax.Array, log_scale: jax.Array, targets: jax.Array) -> jax.Array:
    """A density: normal around the output, with a standard deviation learned for all pixels."""
    z = (targets - outputs) * jnp.exp(-log_scale)
    return -0.5 * z**2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)


def logistic(outputs: jax.Array, log_scale: jax.Array, targets: jax.Array) -> jax.Array:
    """A category of 256: the logistic distribution around the output, cut into the levels of a
    pixel; the first and the last one take the tails (Kingma et al. 2016, arXiv:1606.04934)."""
    half = 0.5 / (LEVELS - 1)
    above = (targets + half - outputs) * jnp.exp(-log_scale)
    below = (targets - half - outputs) * jnp.exp(-log_scale)
    # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b − a)), exactly
    width = 2 * half * jnp.exp(-log_scale)
    middle = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(-width))
    black, white = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
    return jnp.where(targets < half, black, jnp.where(targets > 1 - half, white, middle))


LIKELIHOODS: dict[str, Callable[..., jax.Array]] = {
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "logistic": logistic,
}
MEANS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "bernoulli": jax.nn.sigmoid,
    "gaussian": lambda outputs: outputs,
    "logistic": lambda outputs: outputs,
}
