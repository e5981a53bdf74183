"""How a model of sequences takes what it is fed: numbers, tokens or images."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.errors import UserError
from experiments.ops.product import matmul

ONE_HOT = 256  # most different tokens that are multiplied as one-hot vectors


class Reader(nnx.Module):
    """What a model is fed: features of steps [B, T, F], or tokens [B, T] as they are."""

    def __init__(
        self, features: int, embedding: int | None, *, kernel_init: Initializer, rngs: nnx.Rngs
    ):
        if embedding is None:
            self.table = None
        else:
            table = kernel_init(rngs.params(), (features, embedding), jnp.float32)
            self.table = nnx.Param(table)

    def __call__(self, x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.integer):
            return x if self.table is None else project(x, self.table[...])
        if self.table is not None:
            raise UserError("model.embedding is for sequences of tokens, not of numbers")
        return x.reshape(x.shape[0], *steps_and_features(x.shape[1:]))


def vectors(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Tokens [B, T] as the one-hot vectors that they stand for, if there are few different ones.

    Then their product with a kernel is faster than looking its rows up, since the gradient of that
    is one addition after the other. What is none of this comes back as it is.
    """
    if jnp.issubdtype(x.dtype, jnp.integer) and len(kernel) <= ONE_HOT:
        return jax.nn.one_hot(x, len(kernel), dtype=kernel.dtype)
    return x


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W for all steps as one matrix product: [B, T, F] or tokens [B, T] to [B, T, G]."""
    x = vectors(x, kernel)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return kernel[x]
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:2], -1)


def real_steps(length: int, lengths: jax.Array | None) -> jax.Array | None:
    """Of sequences of these lengths, int [B], which steps are real: bool [T, B, 1], or None."""
    return None if lengths is None else (jnp.arange(length)[:, None] < lengths)[..., None]


def steps_and_features(shape: tuple[int, ...]) -> tuple[int, int]:
    """(steps, features of a step) of what a model reads; a vector is a sequence of scalars."""
    return shape[0], math.prod(shape[1:])
