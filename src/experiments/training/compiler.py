"""How XLA compiles: how much trouble it takes, and what it keeps for later runs."""

import functools
import importlib.util
import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from experiments.paths import user_cache

log = logging.getLogger(__name__)

SHORT = 1e11  # floating-point operations: a second or two on two cores

CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": "1"}
SHORT_OPTIONS: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 2}
if jax.__version_info__ < (0, 11, 1):  # later versions have the newer emitters alone
    SHORT_OPTIONS["xla_cpu_use_fusion_emitters"] = False


def compiler_options(work: float = math.inf) -> dict[str, Any] | None:
    """How XLA should compile for the device at hand.

    On CPU LLVM's first level of optimisation gives the same step times as the default (VGG-16 0.52
    s, LeNet-5 7.0 ms, MLP 0.52 ms either way) and compiles VGG-16 in 7.0 instead of 9.1 s, an
    initializer in 0.18 instead of 0.43 s. XLA's older emitters compile LeNet-5's training in 0.64
    instead of 1.30 s, VGG-16's in 1.9 instead of 3.5 and GoogLeNet's in 7.2 instead of 12.3, but
    its steps take 1.10, 1.15 and 1.09 times as long: they are for programs that do not run long.
    Such programs are cut into two for LLVM, not 32: that of 128 MLPs takes 0.58 instead of 0.73 s,
    of the processors 0.91 instead of 1.15; large ones are better cut small, GoogLeNet by a tenth.

    Args:
      work: the floating-point operations of everything that the program will be called for.
    """
    if jax.default_backend() != "cpu":
        return None
    return CPU_OPTIONS | SHORT_OPTIONS if work < SHORT else dict(CPU_OPTIONS)


def set_up_compiler(folder: str | None) -> None:
    """Keeps compiled programs in `folder` (None: the user's cache folder; "" : nowhere).

    Comes before any use of a device, as XLA reads its flags then.
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
    """Without accelerators LLVM leaves its reduction of strength in loops out.

    That is a seventh of what XLA takes for GoogLeNet's training step, and no step that was measured
    runs faster for it.
    """
    accelerated = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    given = os.environ.get("XLA_FLAGS", "")
    if not accelerated and "xla_backend_extra_options" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_extra_options=-disable-lsr".strip()
