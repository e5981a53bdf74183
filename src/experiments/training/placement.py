"""Where trials go: over how many devices, and how many as one batched computation on each."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import machine
from experiments.errors import UserError
from experiments.training.runtime import devices_of_one_trial
from experiments.viz.flops import Cost

log = logging.getLogger(__name__)

SHARE_OF_MEMORY = 0.7  # of what is free, the most that a program may take
FILLS_CPU = 2e-3  # seconds of a trial's step from which nothing is gained side by side
# Operations of a trial's step below which a CPU always gains from more side by side: its overhead
# is all that counts, and no other width need be compiled to compare with.
TINY = 2e7
TINY_TRIALS = 8  # of such steps, the fewest that are worth a core of their own
LARGE = 4e8  # operations that take any core longer than FILLS_CPU, so that nothing need be timed
TIMED_STEPS = 4


def data_mesh(requested: int | None, batch_size: int) -> Mesh:
    """Return the devices that share each batch of one trial, as many per process."""
    devices, processes = devices_of_one_trial(), jax.process_count()
    if requested is not None and requested > len(devices):
        raise UserError(f"trainer.devices={requested}: this machine has {len(devices)}")
    least = (requested or 1) * processes
    if batch_size % least:
        what = f"{processes} nodes cannot share" if requested is None else ""
        raise UserError(
            f"{what or f'trainer.devices={requested} does not divide'} the batch of {batch_size}; "
            f"use a data.batch_size that is a multiple of {least}"
        )
    share = batch_size // processes
    count = requested or max(n for n in range(1, len(devices) + 1) if share % n == 0)
    if count < len(devices) and requested is None:
        log.warning(
            "using %d of %d devices: a batch of %d does not divide evenly over more",
            count,
            len(devices),
            batch_size,
        )
    chosen = [
        device
        for process in range(processes)
        for device in [d for d in jax.devices() if d.process_index == process][:count]
    ]
    return Mesh(np.asarray(chosen).reshape(1, -1), ("trial", "data"))


def devices_for(trials: int, cost: Cost) -> list[jax.Device]:
    """Return the devices to spread trials over, each a whole number of them.

    Of a CPU's cores as many as there is memory for, if each held all that a step stores. Tiny steps
    go several to a core, since each device adds to the time of a dispatch.

    Args:
      cost: of a trial's step.
    """
    devices = jax.local_devices()[:trials]
    if jax.default_backend() == "cpu":
        fit = int(SHARE_OF_MEMORY * machine.free_memory()) // max(cost.memory, 1)
        most = min(fit, trials // TINY_TRIALS) if cost.flops < TINY else fit
        devices = devices[: max(most, 1)]
    return devices


def widths(trials: int, flops: int, wanted: int | None) -> list[int]:
    """Return the numbers of trials per batched computation to choose from, narrowest first.

    Args:
      trials: those of one device.
      flops: of a trial's step.
      wanted: the one that is asked for, if any.
    """
    if wanted is not None:
        return [min(wanted, trials)]
    if trials > 1 and jax.default_backend() == "cpu" and flops < TINY:
        log.info("all %d trials of a device as one batch: a step of one is tiny", trials)
        return [trials]
    if trials > 1 and jax.default_backend() == "cpu" and flops > LARGE:
        log.info("one trial after another: a step of one is large")
        return [1]
    return sorted({1, min(8, trials), trials} if trials > 16 else {1, trials})


def fills_device(seconds: float, trials: int) -> bool:
    """Return whether trials one by one keep a CPU too busy to gain from a wider batch.

    That spares compiling wider programs.

    Args:
      seconds: of a step of all trials, one by one.
    """
    each = seconds / trials
    if busy := jax.default_backend() == "cpu" and each > FILLS_CPU:
        log.info("one trial after another: a step of one takes %.3g s", each)
    return busy


def fastest(programs: Mapping[int, Any], seconds: Callable[[Any, int], float], devices: int) -> int:
    """Return the width, of several in rising order, whose program fits and runs fastest.

    Args:
      seconds: returns the time of so many steps by a program.
    """
    times: dict[int, float] = {}
    for width, program in programs.items():
        needed = program.memory_analysis().temp_size_in_bytes
        if times and needed > SHARE_OF_MEMORY * free_memory(devices):
            log.info("%d trials as one batch would need too much memory", width)
            continue
        times[width] = seconds(program, TIMED_STEPS)
        log.info(
            "%d trials as one batch: %.3g s for %d steps of all", width, times[width], TIMED_STEPS
        )
    return min(times, key=lambda width: times[width])


def free_memory(devices: int) -> int:
    """Return the bytes free on each of so many devices; a CPU's cores have them in common."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return machine.free_memory() // devices


def timed(call: Callable[[int], Any], steps: int) -> float:
    """Return the seconds of so many steps; one before them warms up."""
    jax.block_until_ready(call(1))
    start = time.perf_counter()
    jax.block_until_ready(call(steps))
    return time.perf_counter() - start
