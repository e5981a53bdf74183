"""JAX on this machine: the devices of trials, and XLA's options for them."""

import collections
import contextlib
import functools
import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh

from experiments import machine
from experiments.errors import UserError
from experiments.machine import cores, expanded, user_cache
from experiments.processes import gpus
from experiments.tracking import provenance
from experiments.training.devices.numerics import FLOAT32, compute_as, products
from experiments.viz.flops import Cost

log = logging.getLogger(__name__)

SHORT = 1e11  # floating-point operations of a program that takes a second or two on two cores
CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": "1"}
SHORT_OPTIONS: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 2}
if jax.__version_info__ < (0, 11, 1):  # later versions have the newer emitters alone
    SHORT_OPTIONS["xla_cpu_use_fusion_emitters"] = False
# XLA's CPU backend would take barriers out before it joins what is computed twice
REMAT_OPTIONS: dict[str, Any] = {"xla_disable_hlo_passes": "cse_barrier_expander"}
DEVICE_FILES = Path("/dev")
GPUS = {"an NVIDIA GPU": "nvidia[0-9]*", "an AMD GPU": "kfd"}  # by what Linux shows of them

SHARE_OF_MEMORY = 0.7  # of what is free, the most that a program may take
FILLS_CPU = 2e-3  # seconds of a trial's step from which nothing is gained side by side
# Operations of a trial's step below which a CPU always gains from more side by side: its overhead
# is all that counts, and no other width need be compiled to compare with.
TINY = 2e7
TINY_TRIALS = 8  # of such steps, the fewest that are worth a core of their own
LARGE = 4e8  # operations that take any core longer than FILLS_CPU, so that nothing need be timed
TIMED_STEPS = 4
WORTH_SHARING = 1e10  # operations of a step; to share fewer costs more than it saves

SETTINGS = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": None,
    "jax_threefry_partitionable": True,
}
"""Settings of JAX that the environment changes for all of its programs: `JAX_ENABLE_X64=1`."""

background = ThreadPoolExecutor(8, thread_name_prefix="compiling")
"""The threads in which programs are compiled while Python goes on."""

_each_core_is_a_device = False


def compiler_options(work: float = math.inf, *, remat: bool = False) -> dict[str, Any] | None:
    """Return XLA's options for a program on the device at hand.

    On a CPU LLVM's first level of optimisation compiles sooner and gives steps as fast as the
    default's. XLA's older emitters, where it has them, and a division into two parts instead of 32
    compile in half the time but give slower steps, so they are for programs that run shortly.
    Options that the environment gives in XLA_FLAGS are followed.

    Args:
      work: the floating-point operations of everything that the program will be called for.
      remat: whether it is to compute some things twice.
    """
    if jax.default_backend() != "cpu":
        return None
    options = CPU_OPTIONS | SHORT_OPTIONS if work < SHORT else CPU_OPTIONS
    options = options | REMAT_OPTIONS if remat else options
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if f"--{name}=" not in given}


def set_up_compiler(folder: str | None, *trainers: Mapping[str, Any]) -> None:
    """Keep compiled programs in `folder` (None: the user's cache folder; "": nowhere).

    None is JAX's own variable of the environment, if it is set. Comes before any use of a device,
    since XLA reads its flags then.

    Args:
      trainers: of the configs, whose `matmul_precision` and `deterministic` hold for the process.

    Raises:
        UserError: the trainers differ in these, or come too late.
    """
    _use_own_settings()
    _leave_out_slow_passes()
    if trainers:
        compute_as(*trainers)
    own = jax.config.values["jax_cuda_visible_devices"]  # of several processes of a machine
    numbers = None if own == "all" else [int(number) for number in own.split(",")]
    if _has_plugin() and (taken := gpus.take_what_is_left(numbers)) is not None:
        log.warning("%s by other processes: this one takes memory as it needs it", taken)
    if folder == "":
        return
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    path = expanded(folder) if folder else user_cache() / "xla"
    try:
        machine.private_folder(path.absolute())
        with tempfile.TemporaryFile(dir=path) as probe:  # JAX would warn once per program
            probe.write(bytes(4096))
    except OSError as error:
        log.warning("no compilation cache: %s", error)
        jax.config.update("jax_compilation_cache_dir", None)  # of the environment
        return
    if jax.config.values["jax_compilation_cache_dir"] not in (None, str(path)):
        reset_cache()  # JAX stays with the first folder that it wrote to
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.03)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _use_own_settings() -> None:
    """Set what the programs are written for, whatever the environment says; say what that changes.

    So they are traced and compiled ahead, in 32 bits, and arrays go to devices as they are needed.
    """
    for name, own in SETTINGS.items():
        if (given := jax.config.values[name]) != own:
            log.warning("%s=%s does not go with this program: it is not followed", name, given)
            jax.config.update(name, own)


@functools.cache
def _leave_out_slow_passes() -> None:
    """Have LLVM leave out its strength reduction of loops, which no measured step gains from."""
    given = os.environ.get("XLA_FLAGS", "")
    if not _has_plugin() and "xla_backend_extra_options" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_extra_options=-disable-lsr".strip()


def _has_plugin() -> bool:
    """Return whether this JAX has a plugin for a GPU or a TPU."""
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def split_processor(trials: int) -> None:
    """Make a device of each core, for so many trials; without effect once a device is in use.

    XLA divides every operation among all cores, which small ones do not fill, so trials side by
    side are faster with a core each. A trial by itself still has all of them: see `data_mesh`.
    """
    global _each_core_is_a_device
    count = min(cores(), trials)
    simulated = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count > 1 and not simulated:
        with contextlib.suppress(RuntimeError):  # in use already
            jax.config.update("jax_num_cpu_devices", count)
            _each_core_is_a_device = True


def announce() -> None:
    """Say by which JAX and on which devices this process computes, and which it leaves idle.

    Meanwhile it is found out where its runs come from.
    """
    provenance.begin()
    log.info("jax %s on %s", jax.__version__, devices())
    if (how := products()) != FLOAT32:
        log.info("products of float32: %s; trainer.matmul_precision=highest is float32", how)
    if (idle := unused_gpu()) is not None:
        log.warning("%s is not used: this JAX has no support for it; see the README", idle)


def devices() -> str:
    """Return the devices that this process computes on, in words."""
    if jax.default_backend() == "cpu":
        return f"CPU, {cores()} cores" if cores() > 1 else "CPU, one core"
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def unused_gpu() -> str | None:
    """Return the kind of GPU that is here and that JAX, unless asked to, does not use."""
    wanted = jax.config.values["jax_platforms"] or ""
    if jax.default_backend() != "cpu" or "cpu" in wanted.split(",") or gpus.hidden():
        return None
    return next((kind for kind, files in GPUS.items() if any(DEVICE_FILES.glob(files))), None)


def data_mesh(requested: int | None, batch_size: int, *, strict: bool = True) -> Mesh:
    """Return the devices that share each batch of one trial, as many per process.

    Those of one process need not divide it evenly: XLA pads the parts.

    Args:
      strict: refuse to work on fewer than are `requested`, which an earlier run may have had.
    """
    devices, processes = jax.local_devices(), jax.process_count()
    if _each_core_is_a_device and devices[0].platform == "cpu":
        devices = devices[:1]  # which stands for all cores
    if requested is not None and requested > len(devices):
        if strict:
            raise UserError(f"trainer.devices={requested}: this machine has {len(devices)}")
        log.warning("trainer.devices=%d: using %d, all that are here", requested, len(devices))
        requested = None
    share = batch_size // processes
    count = min(requested or len(devices), share)
    if processes > 1:
        least = (requested or 1) * processes
        if batch_size % least:
            each = f" of {requested} devices" if requested else ""
            raise UserError(
                f"{processes} nodes{each} cannot share the batch of {batch_size}; "
                f"use a data.batch_size that is a multiple of {least}"
            )
        count = max(n for n in range(1, count + 1) if share % n == 0)
    chosen = [
        device
        for process in range(processes)
        for device in [d for d in jax.devices() if d.process_index == process][:count]
    ]
    return Mesh(np.asarray(chosen).reshape(1, -1), ("trial", "data"))


def worth_sharing(mesh: Mesh, cost: Callable[[], Cost]) -> bool:
    """Return whether a trial's step is large enough for the devices of a process to share it.

    Args:
      cost: returns that of the step.
    """
    count = mesh.local_mesh.size
    if small := count > 1 and cost().flops < WORTH_SHARING:
        log.info("one of %d devices: a step is too small to share; see trainer.devices", count)
    return not small


def devices_for(trials: int, cost: Cost, each: int = 1) -> np.ndarray:
    """Return the devices to spread trials over, [groups, each]: a group has whole trials.

    Of a CPU's cores as many as there is memory for, if each held all that a step stores. Tiny steps
    go several to a core, since each device adds to the time of a dispatch.

    Args:
      cost: of a trial's step.
      each: devices of a group, which share what its trials compute.
    """
    devices = jax.local_devices()
    most = min(trials, len(devices) // each)
    if jax.default_backend() == "cpu":
        most = min(most, int(SHARE_OF_MEMORY * machine.free_memory()) // max(cost.memory, 1))
        if cost.flops < TINY and each == 1:  # else the devices were asked for
            most = min(most, trials // TINY_TRIALS)
    return np.asarray(devices[: max(most, 1) * each]).reshape(-1, each)


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


class Profile:
    """A trace by the JAX profiler of some `steps` after the first dispatch; 0 records none.

    It begins and ends between dispatches, or with the run. One that cannot be written costs a line.
    """

    def __init__(self, directory: Path, steps: int):
        self.folder, self.steps = directory / "profile", steps
        self.since: int | None = None

    def before(self, step: int) -> None:
        """Take note of the steps done before a dispatch; the first one only warms up."""
        if self.steps and self.since is None and step > 0:
            self.since = step
            self._try(jax.profiler.start_trace, self.folder)

    def after(self, step: int, *, ended: bool = False) -> None:
        """Take note of the steps done after a dispatch, or in all."""
        if self.steps and self.since is not None and (ended or step - self.since >= self.steps):
            if self._try(jax.profiler.stop_trace):
                log.info("profile of %d steps: %s", step - self.since, self.folder)
            self.steps = 0

    def _try(self, call: Callable, *arguments: Any) -> bool:
        try:
            call(*arguments)
        except Exception as error:
            log.warning("no profile in %s: %s", self.folder, error)
            self.steps = 0
            return False
        return True
