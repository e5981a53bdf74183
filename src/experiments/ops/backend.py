"""Who computes an operation: XLA, or on a CPU this package's own functions in C (`library.py`)."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from experiments.ops import library

CONSENT = ("high", "bfloat16_3x", "tensorfloat32")  # to less than float32, in JAX's words

_xla_only = ContextVar("xla_only", default=False)


@contextlib.contextmanager
def xla_only() -> Iterator[None]:
    """Let what is traced within use XLA's operations alone, to run on other machines as well."""
    token = _xla_only.set(True)
    try:
        yield
    finally:
        _xla_only.reset(token)


def is_xla_only() -> bool:
    """Return True within `xla_only`."""
    return _xla_only.get()


def usable(*arrays: jax.Array) -> bool:
    """Return True if the C library can compute with these arrays.

    It cannot where XLA divides the program among several devices: it would gather the arrays.
    """
    if is_xla_only() or jax.default_backend() != "cpu":
        return False
    if any(array.dtype != jnp.float32 for array in arrays) or not _one_device():
        return False
    return library.available()


def products(numbers: jax.typing.DTypeLike) -> int:
    """Return how many products of bfloat16 by matrix units stand for one of float32.

    Three where the precision of matrix products is "high", one where the numbers are bfloat16 in
    arrays of float32, and 0, which is float32 itself, elsewhere and where there are no units.
    """
    if numbers == jnp.bfloat16:
        wanted = 1
    else:
        wanted = 3 * (jax.config.values["jax_default_matmul_precision"] in CONSENT)
    return wanted if wanted and library.has_tiles() else 0


def _one_device() -> bool:
    """Return True if the traced program runs on one device, or spells out each device's part."""
    cores = jax.config.values["jax_num_cpu_devices"] > 1  # a device per core, each used by itself
    return jax.local_device_count() == 1 == jax.process_count() or cores
