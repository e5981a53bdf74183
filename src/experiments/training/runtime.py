"""How JAX runs here: its devices, and how XLA compiles for them and keeps what it compiled."""

import collections
import contextlib
import functools
import importlib.util
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from experiments.machine import cores, user_cache

log = logging.getLogger(__name__)

SHORT = 1e11  # floating-point operations of a program that takes a second or two on two cores
CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": "1"}
SHORT_OPTIONS: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 2}
if jax.__version_info__ < (0, 11, 1):  # later versions have the newer emitters alone
    SHORT_OPTIONS["xla_cpu_use_fusion_emitters"] = False
DEVICE_FILES = Path("/dev")
GPUS = {"an NVIDIA GPU": "nvidia[0-9]*", "an AMD GPU": "kfd"}  # by what Linux shows of them

background = ThreadPoolExecutor(8, thread_name_prefix="compiling")
"""Where programs are compiled while Python goes on."""

_each_core_is_a_device = False


def compiler_options(work: float = math.inf) -> dict[str, Any] | None:
    """Return XLA's options for a program on the device at hand.

    On a CPU LLVM's first level of optimisation compiles sooner and gives steps as fast as the
    default's. XLA's older emitters, where it has them, and a division into two parts instead of 32
    compile in half the time but give slower steps, so they are for programs that run shortly.

    Args:
      work: the floating-point operations of everything that the program will be called for.
    """
    if jax.default_backend() != "cpu":
        return None
    return CPU_OPTIONS | SHORT_OPTIONS if work < SHORT else dict(CPU_OPTIONS)


def set_up_compiler(folder: str | None) -> None:
    """Keep compiled programs in `folder` (None: the user's cache folder; "": nowhere).

    Comes before any use of a device, since XLA reads its flags then.
    """
    _leave_out_slow_passes()
    if folder == "":
        return
    path = Path(folder).expanduser() if folder else user_cache() / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("no compilation cache: %s", error)
        return
    if jax.config.values["jax_compilation_cache_dir"] not in (None, str(path)):
        reset_cache()  # JAX stays with the first folder that it wrote to
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.03)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@functools.cache
def _leave_out_slow_passes() -> None:
    """Have LLVM leave out its strength reduction of loops, which no measured step gains from."""
    accelerated = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    given = os.environ.get("XLA_FLAGS", "")
    if not accelerated and "xla_backend_extra_options" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_extra_options=-disable-lsr".strip()


def split_processor(trials: int) -> None:
    """Make a device of each core, for so many trials; without effect once a device is in use.

    XLA divides every operation among all cores, which small ones do not fill, so trials side by
    side are faster with a core each. A trial by itself still has all of them: see `devices`.
    """
    global _each_core_is_a_device
    count = min(cores(), trials)
    simulated = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count > 1 and not simulated:
        with contextlib.suppress(RuntimeError):  # in use already
            jax.config.update("jax_num_cpu_devices", count)
            _each_core_is_a_device = True


def devices_of_one_trial() -> list[jax.Device]:
    """Return this process's devices; one stands for all cores where each core is a device."""
    devices = jax.local_devices()
    return devices[:1] if _each_core_is_a_device and devices[0].platform == "cpu" else devices


def announce() -> None:
    """Say by which JAX and on which devices this process computes, and which it leaves idle."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    if jax.default_backend() == "cpu":
        found = f"CPU, {cores()} cores" if cores() > 1 else "CPU, one core"
    else:
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    log.info("jax %s on %s", jax.__version__, found)
    if (idle := unused_gpu()) is not None:
        log.warning("%s is not used: this JAX has no support for it; see the README", idle)


def unused_gpu() -> str | None:
    """Return the kind of GPU that this machine has and JAX, unless it was told to, does not use."""
    wanted = jax.config.values["jax_platforms"] or ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if jax.default_backend() != "cpu" or "cpu" in wanted.split(",") or hidden:
        return None
    return next((kind for kind, files in GPUS.items() if any(DEVICE_FILES.glob(files))), None)


class Profile:
    """A trace by the JAX profiler of `steps` steps after the first one; 0 records none."""

    def __init__(self, directory: Path, steps: int):
        self.folder, self.steps = directory / "profile", steps
        self.since: int | None = None

    def before(self, step: int) -> None:
        """Take note of the steps done before a dispatch; the first one only warms up."""
        if self.steps and self.since is None and step > 0:
            jax.profiler.start_trace(self.folder)
            self.since = step

    def after(self, step: int) -> None:
        """Take note of the steps done after a dispatch."""
        if self.since is not None and self.steps and step - self.since >= self.steps:
            jax.profiler.stop_trace()
            log.info("profile of %d steps: %s", step - self.since, self.folder)
            self.steps = 0
