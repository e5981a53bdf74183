"""The C library of operations by matrix units, compiled for this machine when it is first used.

As `torch.compile` and Triton do it, by the C compiler at hand, once: the library stays in the
user's cache folder. Where there is no compiler, or the processor has no matrix units, everything
works without it, by XLA's own operations.
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

from experiments.machine import user_cache

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = ("products.c", "lstm.c", "adam.c")
FUNCTIONS = ("multiply_windows", "sum_windows", "lstm_forward", "lstm_backward", "adam_step")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "amx_tile", "amx_bf16"}
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC"]
FLAGS += [f"-m{flag.replace('avx512_', 'avx512').replace('_', '-')}" for flag in sorted(NEEDED)]
# compiled under another name: others may be at it as well, or this process end before
COMPILE = 'file=$0; "$@" -o "$file.$$" && mv "$file.$$" "$file"'

_compiling: subprocess.Popen[str] | None = None


def begin() -> None:
    """Has the library compiled, where that is needed, beside what else a program starts with."""
    global _compiling
    if _has_units() and not (path := _path()).exists() and (compiler := _compiler()):
        try:
            _compiling = _compile(path, compiler)
        except OSError as error:
            log.debug("begun in vain: %s", error)  # `available` says so where it matters


@functools.cache
def available() -> bool:
    """Whether XLA can call the library; loads it, and compiles it before where nobody has."""
    if not _has_units():
        return False
    import jax

    try:
        library = ctypes.CDLL(str(_made()))
    except OSError as error:
        log.info("the processor's matrix units are not used: %s", error)
        return False
    if library.ask_for_tiles() != 0:
        log.info("the processor's matrix units are not used: the system does not allow it")
        return False
    for function in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(library, function))
        jax.ffi.register_ffi_target(target(function), capsule, platform="cpu")
    return True


def target(function: str) -> str:
    """What XLA knows a function of the library by."""
    return f"experiments_{function}"


@functools.cache
def version() -> str:
    """Of the library: another source or another interface of XLA is another one."""
    known = hashlib.sha256(repr(FLAGS).encode())
    headers = [FOLDER / "units.h", _headers() / "xla/ffi/api/c_api.h"]
    for source in [*(FOLDER / name for name in SOURCES), *headers]:
        known.update(source.read_bytes())
    return known.hexdigest()[:16]


def _has_units() -> bool:
    described = Path("/proc/cpuinfo")  # of Linux
    if platform.machine() != "x86_64" or not described.exists():
        return False
    with described.open() as lines:
        flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.split()) >= NEEDED


def _path() -> Path:
    """Where the library is, or will be."""
    return user_cache() / "libraries" / f"units-{version()}.so"


def _headers() -> Path:
    """Those of XLA, found without importing it."""
    found = importlib.util.find_spec("jaxlib")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "include")


def _compiler() -> list[str]:
    """The command of the C compiler, empty where there is none."""
    if given := os.environ.get("CC"):
        return given.split()
    return [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path][:1]


def _compile(path: Path, compiler: list[str]) -> subprocess.Popen[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(FOLDER / name) for name in SOURCES]
    return subprocess.Popen(
        ["sh", "-c", COMPILE, str(path), *compiler, *FLAGS, f"-I{_headers()}", *sources],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _made() -> Path:
    """The library's file.

    Raises:
      OSError: no compiler, one that refuses the source, or nowhere to write.
    """
    path = _path()
    if path.exists():
        return path
    if not (compiler := _compiler()):
        raise OSError("there is no C compiler (cc) to make their library with")
    process = _compiling or _compile(path, compiler)
    _, said = process.communicate()
    if process.returncode != 0:
        lines = [*said.strip().splitlines(), f"exit code {process.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise OSError(f"{compiler[0]} cannot make their library: {first}")
    return path
