"""The C library of operations on a CPU, compiled for the processor when a machine first uses it.

The machine's own C compiler makes it, and it stays in the user's cache folder. Where there is no
compiler, or the processor has neither AVX2 nor NEON, XLA's own operations take its place.
"""

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from experiments.machine import PROC, private_folder, user_cache

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.c"))
FUNCTIONS = ("multiply_windows", "sum_windows", "lstm_forward", "lstm_backward")
NEEDED = ({"avx2", "fma"}, {"asimd"})  # of x86, or of ARM: what the vectors' length is chosen for
FLAGS = ["-O2", "-std=gnu11", "-shared", "-fPIC"]
# under another name first: another process may compile it too, or this one may be killed meanwhile
COMPILE = 'file=$0; "$@" -o "$file.$$" && mv "$file.$$" "$file"'

_compiling: subprocess.Popen[str] | None = None


def begin() -> None:
    """Start compiling the library in the background if this machine has none yet."""
    global _compiling
    if _is_known() and not (path := _path()).exists() and (compiler := _compiler()):
        try:
            _compiling = _compile(path, compiler)
        except OSError as error:
            log.debug("cannot be compiled: %s", error)  # `available` reports it if it is needed


@functools.cache
def available() -> bool:
    """Load the library, compiled before if need be; return True if XLA can call it."""
    if not _is_known():
        return False
    import jax

    try:
        library = ctypes.CDLL(str(_compiled()))
    except OSError as error:
        log.info("convolutions and LSTMs are left to XLA: %s", error)
        return False
    for function in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(library, function))
        jax.ffi.register_ffi_target(target(function), capsule, platform="cpu")
    return True


@functools.cache
def has_tiles() -> bool:
    """Return True if the library knows this processor's matrix units (AMX) and may use them."""
    return available() and ctypes.CDLL(str(_path())).has_tiles() == 1


def target(function: str) -> str:
    """Return the name under which XLA knows a function of the library."""
    return f"experiments_{function}"


@functools.cache
def version() -> str:
    """Return a hash of everything that the library is compiled from, the processor included."""
    known = hashlib.sha256(repr([_flags(), sorted(features())]).encode())
    headers = [*sorted(FOLDER.glob("*.h")), _headers() / "xla/ffi/api/c_api.h"]
    for source in [*SOURCES, *headers]:
        known.update(source.read_bytes())
    return known.hexdigest()[:16]


def _is_known() -> bool:
    return any(needed <= features() for needed in NEEDED)


@functools.cache
def features() -> frozenset[str]:
    """Return what the processor can do, in the words of Linux; of others, that ARM has NEON."""
    described = PROC / "cpuinfo"
    if not described.exists():
        return frozenset({"asimd"} if platform.machine() == "arm64" else ())
    with described.open() as lines:
        named = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(named.partition(":")[2].split())


def _flags() -> list[str]:
    return [*FLAGS, "-march=native" if "avx2" in features() else "-mcpu=native"]


def _path() -> Path:
    """Return the path of the compiled library, whether or not it exists."""
    return user_cache() / "libraries" / f"operations-{version()}.so"


def _headers() -> Path:
    """Return the folder of XLA's headers, found without importing JAX."""
    found = importlib.util.find_spec("jaxlib")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "include")


def _compiler() -> list[str]:
    """Return the command of the C compiler, empty if there is none."""
    if given := os.environ.get("CC"):
        return given.split()
    return [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path][:1]


def _compile(path: Path, compiler: list[str]) -> subprocess.Popen[str]:
    private_folder(path.parent)
    return subprocess.Popen(
        [
            "sh",
            "-c",
            COMPILE,
            str(path),
            *compiler,
            *_flags(),
            f"-I{_headers()}",
            *map(str, SOURCES),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _compiled() -> Path:
    """Compile the library if need be and return its path.

    Raises:
      OSError: no compiler, one that refuses the source, or nowhere to write that is private.
    """
    path = _path()
    if private_folder(path.parent) and path.exists():
        return path
    if not (compiler := _compiler()):
        raise OSError("there is no C compiler (cc)")
    process = _compiling or _compile(path, compiler)
    _, said = process.communicate()
    if process.returncode != 0:
        lines = [*said.strip().splitlines(), f"exit code {process.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise OSError(f"{compiler[0]} cannot compile them: {first}")
    return path
