"""Initializers that `jax.nn.initializers` lacks; the files in `conf/init` name both kinds.

An initializer is a function `(key, shape, dtype) -> array`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


def uniform(low: float, high: float) -> Initializer:
    """Independent draws from U[low, high); jax's own `uniform` starts at 0."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return low + (high - low) * jax.random.uniform(key, shape, dtype)

    return init
