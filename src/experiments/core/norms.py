"""Sums over the numbers of many arrays."""

from typing import Any

import jax
import jax.numpy as jnp

SMALL = 1 << 12  # numbers; with 1 << 18 copying made a step of an autoencoder a quarter longer


def norm(tree: Any) -> jax.Array:
    """√Σx² over all leaves, in float32.

    Small leaves are put together first: of the hundreds that deep networks have each would be some
    sums of its own to compile, two thirds of the time that ResNet-152's training step took.
    """
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]
    parts = [leaf for leaf in leaves if leaf.size > SMALL]
    parts += [jnp.concatenate(small)] if small else []
    return jnp.sqrt(sum((jnp.sum(jnp.square(part)) for part in parts), jnp.float32(0)))
