"""The persistent compilation cache: a program that was compiled before starts at once."""

import logging
import os
from pathlib import Path

import jax

log = logging.getLogger(__name__)


def use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs in `folder` (None: the user's cache folder; "" : nowhere)."""
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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
