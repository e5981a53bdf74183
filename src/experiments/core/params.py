"""A model's variables as plain nested dicts, and operations on such trees of arrays."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import PartitionSpec

Tree = Any

WORTH_DIVIDING = 1 << 14  # numbers of an array, the fewest
SMALL = 1 << 12  # numbers of an array that `norm` copies to take it together with others


def variables(model: nnx.Module) -> tuple[Tree, Tree]:
    """Return (parameters, all other variables) of a model as plain nested dicts.

    Keys of random streams are none: they follow from the seed and the step.
    """
    params = nnx.state(model, nnx.Param)
    rest = nnx.state(model, nnx.All(nnx.Variable, nnx.Not(nnx.Any(nnx.Param, nnx.RngState))))
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def count_parameters(params: Tree) -> int:
    """Return the number of trainable scalars."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


@jax.jit  # array by array XLA would compile a program for each shape
def copied(tree: Tree) -> Tree:
    """Return the same values in new arrays."""
    return jax.tree.map(jnp.copy, tree)


def merged(a: Tree, b: Tree) -> Tree:
    """Merge two nested dicts with disjoint leaves."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(a) | traverse_util.flatten_dict(b)
    )


def divided(shape: Sequence[int], devices: int) -> tuple[str | None, ...]:
    """Return the dimension along which so many devices divide an array, in the form of JAX's specs.

    It is the longest that they divide evenly. Of a small array, and where there is none, each has a
    copy: ().
    """
    even = [axis for axis, length in enumerate(shape) if length % devices == 0]
    if devices == 1 or math.prod(shape) < WORTH_DIVIDING or not even:
        return ()
    longest = max(even, key=lambda axis: shape[axis])
    return (*[None] * longest, "data")


def gathered(weights: Tree) -> Tree:
    """Return weights as a device computes with them: in full, where each holds a part; in a trace.

    XLA gathers each array where it is used. Trials that have a device each are in full there.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" in mesh.manual_axes:
        return weights
    return jax.lax.with_sharding_constraint(weights, PartitionSpec())


def norm(tree: Tree) -> jax.Array:
    """Return √Σx² over all leaves, in float32.

    Small leaves are concatenated first. Deep networks have hundreds of them, and XLA would compile
    a sum of its own for each.
    """
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    small = [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]
    parts = [leaf for leaf in leaves if leaf.size > SMALL]
    parts += [jnp.concatenate(small)] if small else []
    return jnp.sqrt(sum((jnp.sum(jnp.square(part)) for part in parts), jnp.float32(0)))


def only_if(condition: jax.Array, update: Callable[[Tree], Tree], old: Tree) -> Tree:
    """Return `update(old)` if the traced condition holds, else `old`.

    XLA's CPU backend compiles each choice between two arrays to a loop of its own, which a branch
    does without. On a GPU a branch waits until the host has read the condition.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.cond(condition, update, lambda old: old, old)
    return chosen(condition, update(old), old)


def chosen(condition: jax.Array, one: Tree, other: Tree) -> Tree:
    """Return `one` if the traced condition holds, else `other`; both are computed."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def if_measured(measured: jax.Array | bool, value: Callable[[], jax.Array]) -> jax.Array:
    """Return `value()`, or NaN unless it is `measured`.

    A GPU always measures, as it would wait until the host has read the condition.
    """
    if measured is True or jax.default_backend() != "cpu":
        return value()
    nan = jnp.float32(jnp.nan)
    return nan if measured is False else jax.lax.cond(measured, value, lambda: nan)
