"""Drawing new weights: a program for each size of them, which many layers and runs share."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.config import build, place
from experiments.core.initializers import Initializer, pooled
from experiments.core.rng import initial_keys, keys_of_weights
from experiments.training.compiler import compiler_options

Call = Callable[..., Any]
"""`call(key, function, *arguments, static=...)` calls a jitted function known by a key."""


def directly(_key: str, function: Callable, *arguments: Any, static: tuple = ()) -> Any:
    """A `Call` that does nothing else."""
    return function(*arguments, *static)


class NewWeights:
    """Weights by an initializer; `config` is the group `init`.

    To be drawn outside of jit: a program for each size of weights compiles in a fraction of the
    time that one program of all layers takes.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        options = compiler_options(0)
        self._sample = jax.jit(self._sampled, static_argnums=(3, 4), compiler_options=options)
        self._derive = jax.jit(initial_keys, compiler_options=options)

    def by(self, hparams: Mapping[str, Any], key: jax.Array, call: Call) -> Initializer:
        """The initializer of a new model; each call of it draws the next weights."""
        keys = keys_of_weights(lambda first: call("keys", self._derive, key, first))

        def kernel_init(_key: Any, shape: Any, dtype: Any) -> jax.Array:
            return self.draw(call, next(keys), hparams, tuple(shape), jnp.dtype(dtype))

        return kernel_init

    def draw(
        self,
        call: Call,
        key: tuple[jax.Array, np.uint32],
        hparams: Mapping[str, Any],
        shape: tuple,
        dtype: Any,
    ) -> jax.Array:
        """New weights, the first of a number that one program draws for many shapes.

        `key` is one of several keys, and which of them.
        """
        pool = pooled(self.config, shape)
        if pool is None:
            of = (shape, dtype)
            return call(f"sample {of}", self._sample, *key, hparams, static=of)
        if "scale" in self.config:
            scale = hparams.get("init.scale", self.config["scale"])
            hparams = {**hparams, "init.scale": scale * np.float32(pool.scale)}
        of = ((pool.size, 1), dtype)
        numbers = call(f"sample {of}", self._sample, *key, hparams, static=of)
        size = math.prod(shape)
        if isinstance(numbers, jax.core.Tracer):
            return numbers[:size, 0].reshape(shape)
        # NumPy, as JAX would compile the cut, and to take it back as well, for every shape
        return jax.device_put(np.asarray(numbers)[:size, 0].reshape(shape))

    def _sampled(
        self, keys: jax.Array, number: Any, hparams: Mapping[str, Any], shape: tuple, dtype: Any
    ) -> jax.Array:
        return build(place(self.config, hparams, "init"))(keys[number], shape, dtype)
