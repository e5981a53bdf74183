"""Random keys: every one follows from the seed of a run, the name of a stream, and a step.

Outside of a trace JAX compiles a program for whatever is done with a key, so there keys are made of
their bits.
"""

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def root_key(seed: int | np.ndarray) -> jax.Array:
    """Return `jax.random.key` of a seed below 2^31, or of each of several."""
    return _key(np.stack([np.zeros_like(seed), seed], axis=-1))


def stream(root: jax.Array, name: str, step: Any = 0) -> jax.Array:
    """Return the key of a named stream at a step; nothing random needs any other state."""
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def streams(key: jax.Array) -> nnx.Rngs:
    """Return streams for new modules of Flax: of initial weights, and of whatever else they ask."""
    return nnx.Rngs(stream(key, "model"), params=key)


def reseed(model: nnx.Module, key: jax.Array) -> None:
    """Give each random stream that a model holds, as `nnx.Dropout` does, a key of its own."""
    streams = (node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.RngStream))
    for number, held in enumerate(streams):
        held.key[...] = jax.random.fold_in(key, number)
        held.count[...] = jnp.zeros_like(held.count[...])


def initial_keys(root: jax.Array) -> Iterator[jax.Array]:
    """Yield the keys of initial weights, in the order in which a model draws them."""
    bits = np.asarray(jax.random.key_data(root)).tolist()
    for number in itertools.count():
        sequence = np.random.SeedSequence([*bits, zlib.crc32(b"init"), number])
        yield _key(sequence.generate_state(2))


def _key(bits: np.ndarray) -> jax.Array:
    """Return the keys of 64 bits each, uint32 [..., 2]."""
    return jax.random.wrap_key_data(jnp.asarray(bits.astype(np.uint32)), impl="threefry2x32")
