"""What is computed only if a traced condition holds, by the means that suit the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def only_if(condition: jax.Array, update: Callable[[Tree], Tree], old: Tree) -> Tree:
    """`update(old)` if the condition holds, else `old`.

    XLA's CPU backend makes loops of their own of choices between arrays, two or three a parameter:
    without them a step of VGG-16 takes 0.88 of the time, one of a dense autoencoder 0.93.
    A GPU would wait for the host to read the condition.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.cond(condition, update, lambda old: old, old)
    return chosen(condition, update(old), old)


def chosen(condition: jax.Array, one: Tree, other: Tree) -> Tree:
    """`one` if the condition holds, else `other`; both are there."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def if_measured(measured: jax.Array | bool, value: Callable[[], jax.Array]) -> jax.Array:
    """`value()`, or NaN if it is not `measured`; a GPU, which would wait, always measures."""
    if measured is True or jax.default_backend() != "cpu":
        return value()
    nan = jnp.float32(jnp.nan)
    return nan if measured is False else jax.lax.cond(measured, value, lambda: nan)
