"""How XLA compiles: what it keeps for later runs, and what it leaves out."""

import importlib.util
import logging
import os
from pathlib import Path

import jax

log = logging.getLogger(__name__)


def set_up_compiler(folder: str | None) -> None:
    """Keeps compiled programs in `folder` (None: the user's cache folder; "" : nowhere).

    Comes before any use of a device, as XLA reads its flags then.
    """
    _leave_out_slow_passes()
    if folder == "":
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(folder).expanduser() if folder else base / "experiments" / "xla"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("no compilation cache: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.03)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _leave_out_slow_passes() -> None:
    """Without accelerators LLVM leaves its reduction of strength in loops out.

    That is a seventh of what XLA takes for GoogLeNet's training step, and no step that was measured
    runs faster for it.
    """
    accelerated = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    given = os.environ.get("XLA_FLAGS", "")
    if not accelerated and "xla_backend_extra_options" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_extra_options=-disable-lsr".strip()
