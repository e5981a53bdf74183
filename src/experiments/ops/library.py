"""The C library with `products.c`, compiled for this machine when it is first used.

As `torch.compile` and Triton do it, by the C compiler at hand, once: the library stays in the
user's cache folder. Where there is no compiler, or the processor has no matrix units, everything
works without it, by XLA's own operations.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("products.c")
TARGETS = {
    "multiply_windows": "experiments_multiply_windows",
    "sum_windows": "experiments_sum_windows",
}
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "amx_tile", "amx_bf16")
MACHINE = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
    "-mamx-tile",
    "-mamx-bf16",
)
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", *MACHINE)


@functools.cache
def available() -> bool:
    """Whether XLA can call the library; loads it, and compiles it before where nobody has."""
    if not _has_units():
        return False
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.info("the processor's matrix units are not used: %s", said.strip().splitlines()[0])
        return False
    if library.ask_for_tiles() != 0:
        log.info("the processor's matrix units are not used: the system does not allow it")
        return False
    for function, target in TARGETS.items():
        capsule = jax.ffi.pycapsule(getattr(library, function))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return True


def _has_units() -> bool:
    described = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not described.exists():
        return False
    flags = next((n for n in described.read_text().splitlines() if n.startswith("flags")), "")
    return set(NEEDED) <= set(flags.split())


def _compiled() -> Path:
    """The library's file.

    Raises:
      OSError: no compiler, or nowhere to write.
      subprocess.CalledProcessError: the compiler refuses the source; `stderr` says why.
    """
    known = hashlib.sha256(SOURCE.read_bytes())
    known.update(repr((FLAGS, jaxlib.__version__)).encode())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base / "experiments" / "libraries" / f"products-{known.hexdigest()[:16]}.so"
    if path.exists():
        return path
    given = os.environ.get("CC")
    compiler = given or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise OSError("there is no C compiler (cc) to make their library with")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # others may be at it as well
        made = Path(folder, path.name)
        subprocess.run(
            [*compiler.split(), *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
        )
        made.replace(path)
    return path
