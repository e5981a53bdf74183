"""The devices of this process: accelerators, or the cores of its processor.

XLA divides every operation among all cores, which small ones do not fill: a step of LeNet-5 takes
6.4 ms on two cores and 10.0 on one, an LSTM's 20 on either. So where lanes train side by side each
core is a device of its own; `python -m benchmarks.cores` shows what that gives.
"""

import collections
import contextlib
import logging
import os
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding

from experiments.training.distributed import put
from experiments.training.processor import cores

log = logging.getLogger(__name__)

DEVICE_FILES = Path("/dev")
GPUS = {"an NVIDIA GPU": "nvidia[0-9]*", "an AMD GPU": "kfd"}  # by what Linux shows of them

_split = False  # whether each core is a device


def split_processor(lanes: int) -> None:
    """Makes devices of the cores, for so many lanes; without effect once a device is in use.

    What trains by itself in this process still has all cores: see `of_one_run`.
    """
    global _split
    count = min(cores(), lanes)
    simulated = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count > 1 and not simulated:
        with contextlib.suppress(RuntimeError):  # in use already
            jax.config.update("jax_num_cpu_devices", count)
            _split = True


def of_one_run() -> list[jax.Device]:
    """The devices that a run by itself can use; one of them stands for all cores."""
    devices = jax.local_devices()
    return devices[:1] if _split and devices[0].platform == "cpu" else devices


def announce() -> None:
    """Says by which JAX and on which devices this process computes, and which it leaves idle."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    if jax.default_backend() == "cpu":
        found = f"CPU, {cores()} cores" if cores() > 1 else "CPU, one core"
    else:
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    log.info("jax %s on %s", jax.__version__, found)
    if (idle := unused_gpu()) is not None:
        log.warning("%s is not used: this JAX has no support for it; see the README", idle)


def unused_gpu() -> str | None:
    """The kind of GPU that this machine has and JAX, unless it was told to, does not use."""
    wanted = jax.config.values["jax_platforms"] or ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if jax.default_backend() != "cpu" or "cpu" in wanted.split(",") or hidden:
        return None
    return next((kind for kind, files in GPUS.items() if any(DEVICE_FILES.glob(files))), None)


def put_to_read(array: np.ndarray | jax.Array, sharding: Sharding) -> jax.Array:
    """`put`, of what no program will overwrite: the cores of a processor share one copy of it."""
    devices = list(sharding.device_set)
    shared = sharding.is_fully_addressable and sharding.is_fully_replicated
    if not shared or len(devices) == 1 or jax.default_backend() != "cpu":
        return put(array, sharding)
    # XLA's own memory is aligned so that other devices take it as it is
    copy = np.asarray(jax.device_put(array, devices[0]))
    views = [jax.device_put(copy, device) for device in devices]
    return jax.make_array_from_single_device_arrays(copy.shape, sharding, views)
