"""How exactly devices compute: the precision of matrix products, and whether a GPU repeats itself.

Both hold for a whole process, and for all programs that it compiles.
"""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import xla_bridge

from experiments.errors import UserError
from experiments.ops import backend

PRECISION = "jax_default_matmul_precision"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # which also leaves out timing algorithms
KEYS = ("matmul_precision", "deterministic")  # of `trainer`
FLOAT32, THREE = "float32", "three products of bfloat16"


def compute_as(*trainers: Mapping[str, Any]) -> None:
    """Have this process compute as the configs of its runs say; comes before any use of a device.

    Raises:
        UserError: they say different things, or a GPU is in use already.
    """
    for key in KEYS:
        if len({trainer.get(key) for trainer in trainers}) > 1:
            raise UserError(f"trainer.{key}: all runs of a process have the same")
    precision, deterministic = (trainers[0].get(key) for key in KEYS)
    given = _given()  # before it is changed
    jax.config.update(PRECISION, precision or given)
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and DETERMINISTIC not in flags:
        if xla_bridge.backends_are_initialized() and jax.default_backend() == "gpu":
            raise UserError(
                "trainer.deterministic=true: this process has used its GPU already; "
                f"start it with XLA_FLAGS={DETERMINISTIC}"
            )
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()


@functools.cache
def _given() -> str | None:
    """Return the precision that the environment, or a notebook, asked for at first."""
    return jax.config.values[PRECISION]


def products() -> str:
    """Return in which precision this process computes matrix products of float32, in words."""
    asked, device = jax.config.values[PRECISION], jax.devices()[0]
    if asked in ("highest", "float32"):
        return FLOAT32
    if device.platform == "tpu":
        three = asked in ("high", "tensorfloat32", "bfloat16_3x")
        return THREE if three else "bfloat16"
    if device.platform == "cpu":
        return f"{THREE} in convolutions" if backend.products(jnp.float32) else FLOAT32
    generation = re.match(r"(\d+)\.", str(getattr(device, "compute_capability", "")))  # NVIDIA's
    if generation and int(generation[1]) >= 8:
        return "TF32, which keeps 10 of their 23 bits after the point"
    return FLOAT32 if asked in (None, "default") else f"JAX's precision {asked}"
