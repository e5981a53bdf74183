"""Initializers that `jax.nn.initializers` lacks; the files in `conf/init` name both kinds.

An initializer is a function `(key, shape, dtype) -> array`.

A program that draws weights takes XLA a tenth of a second, and GoogLeNet has 60 kernels of as many
shapes. But most initializers draw number by number, each from the key and its place alone, so one
program for more numbers than are needed serves many shapes: see `pooled`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]

SCALED = "jax.nn.initializers.variance_scaling"
EACH_ALIKE = (
    "jax.nn.initializers.normal",
    "jax.nn.initializers.truncated_normal",
    "jax.nn.initializers.constant",
    "experiments.core.initializers.uniform",
)
SCALING = ("scale", "mode", "distribution")
COARSE = 2**18  # numbers up to which four times as many may be drawn, above it twice as many


class Pool(NamedTuple):
    """How many numbers to draw in the place of weights, at how many times the config's scale."""

    size: int
    scale: float


def pooled(config: Mapping[str, Any], shape: tuple[int, ...]) -> Pool | None:
    """Numbers, drawn as [size, 1], that begin with those of `shape`; None where there are none.

    Where the variance goes with the inputs or outputs of a layer, the scale makes up for those of
    the shape that is drawn. `config` is the initializer's.
    """
    target, size = config["_target_"], math.prod(shape)
    if size == 0 or not jax.config.values["jax_threefry_partitionable"]:
        return None
    bits = (size - 1).bit_length()
    drawn = 2 ** (bits + bits % 2 if size <= COARSE else bits)
    if target in EACH_ALIKE:
        return Pool(drawn, 1.0)
    if target != SCALED or len(shape) < 2 or set(config) - {"_target_", *SCALING}:
        return None
    return Pool(drawn, _fan((drawn, 1), config["mode"]) / _fan(shape, config["mode"]))


def _fan(shape: tuple[int, ...], mode: str) -> float:
    """What the variance is divided by: inputs of a unit, the outputs that see it, or both."""
    window = math.prod(shape[:-2])
    fans = {"fan_in": window * shape[-2], "fan_out": window * shape[-1]}
    both = fans["fan_in"] + fans["fan_out"], fans["fan_in"] * fans["fan_out"]
    return {**fans, "fan_avg": both[0] / 2, "fan_geo_avg": math.sqrt(both[1])}[mode]


def uniform(low: float, high: float) -> Initializer:
    """Independent draws from U[low, high); jax's own `uniform` starts at 0."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return low + (high - low) * jax.random.uniform(key, shape, dtype)

    return init
