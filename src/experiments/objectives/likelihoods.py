"""Likelihoods of pixels in 0..1, given a decoder's output for each.

Each is a function (outputs, log_scale, targets), all of one shape but the scalar `log_scale`, the
logarithm of a width shared by all pixels; it returns the log-likelihood of each pixel in nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LEVELS = 256  # values that a pixel can have


def bernoulli(outputs: jax.Array, log_scale: jax.Array | None, targets: jax.Array) -> jax.Array:
    """Return x z − log(1 + eᶻ): each pixel is on with probability σ(z)."""
    return targets * outputs - jax.nn.softplus(outputs)


def gaussian(outputs: jax.Array, log_scale: jax.Array, targets: jax.Array) -> jax.Array:
    """Return a normal log-density around the output; all pixels share a standard deviation."""
    z = (targets - outputs) * jnp.exp(-log_scale)
    return -0.5 * z**2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)


def logistic(outputs: jax.Array, log_scale: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the log-probability of one of 256 levels by a discretized logistic distribution.

    It lies around the output; the first and the last level take the tails.

    References:
      Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow",
      arXiv:1606.04934.
    """
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
