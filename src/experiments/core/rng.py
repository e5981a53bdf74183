"""Random keys: every one follows from the seed of a run, the name of a stream, and a step.

Outside of a trace JAX compiles a program for whatever is done with a key, which is part of what a
run takes to start.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

TOGETHER = 64  # keys of initial weights that one program makes


def root_key(seed: int | np.ndarray) -> jax.Array:
    """`jax.random.key` of a seed below 2^31, or of each of several.

    Taken from its bits, for which JAX would compile a program, a tenth of a second.
    """
    bits = np.stack([np.zeros_like(seed), seed], axis=-1).astype(np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(bits), impl="threefry2x32")


def stream(root: jax.Array, name: str, step: Any = 0) -> jax.Array:
    """The key of a named stream at a step; nothing random needs any other state."""
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)


def initial_keys(root: jax.Array, first: Any) -> jax.Array:
    """Keys of initial weights, from a number on."""
    numbers = first + np.arange(TOGETHER, dtype=np.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(stream(root, "init"), numbers)


def keys_of_weights(
    make: Callable[[np.uint32], jax.Array],
) -> Iterator[tuple[jax.Array, np.uint32]]:
    """The keys of initial weights in order, each as one of several that `make` gives, and which."""
    for first in itertools.count(0, TOGETHER):
        keys = make(np.uint32(first))
        yield from ((keys, np.uint32(number)) for number in range(TOGETHER))


class NoKeys:
    """In the place of `nnx.Rngs` in constructors whose layers leave drawing to `kernel_init`."""

    def params(self) -> None:
        """The key that `kernel_init` is given, and has no use for."""


def keys_of_layers(model: Mapping[str, Any]) -> Any:
    """The `rngs` for the constructor of a model by its config.

    Models of this package need none.
    """
    own = model["_target_"].startswith("experiments.")
    return NoKeys() if own else nnx.Rngs(params=jax.random.key(0))
