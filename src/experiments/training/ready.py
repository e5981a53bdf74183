"""Programs that an earlier run has compiled, found without tracing them again.

JAX's own cache knows a program by its text, which a run has to trace and lower first: most of what
a deep network takes to start. Here a program is known by everything that its text follows from: the
config, the shapes of the data, all code of this package, versions, settings and devices.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import pickle
import platform
import re
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

import experiments
from experiments.core.config import leaves
from experiments.ops import library
from experiments.training.processor import cores

log = logging.getLogger(__name__)

FOLDER = "ready"  # in that of JAX's compilation cache
DEPENDENCIES = ("jax", "jaxlib", "flax", "optax", "numpy")
OURS = ("experiments.", "optax.", "jax.")  # code that the key covers
UNUSED_DAYS = 30  # after which a program is deleted


class ReadyPrograms:
    """The programs of one configuration, in the compilation cache.

    Args:
      config: the config; where it names code outside of this package nothing is kept.
      made_from: what else the programs follow from, besides code and settings; can be pickled.
      devices: those that they run on.
    """

    def __init__(self, config: Mapping[str, Any], made_from: Any, devices: Sequence[jax.Device]):
        base = jax.config.values["jax_compilation_cache_dir"]
        known = all(name.startswith(OURS) for name in code(config))
        self.folder = Path(base, FOLDER) if base and known and jax.process_count() == 1 else None
        self.devices = devices
        self.new: set[jax.stages.Compiled] = set()
        self.found: dict[jax.stages.Compiled, tuple[jax.stages.Lowered, Any]] = {}  # on disk
        self.digest = hashlib.sha256()
        if self.folder is not None:
            self.digest.update(surroundings().encode())
            self.digest.update(_as_bytes((made_from, [device.id for device in devices])))

    def has(self, name: str) -> bool:
        """Whether programs were put under this name."""
        return self.folder is not None and self._path(name).exists()

    def get(self, name: str) -> dict[str, jax.stages.Compiled]:
        """The programs that were put under this name, by keys of their own."""
        from jax.experimental.serialize_executable import deserialize_and_load

        try:
            return {
                key: deserialize_and_load(
                    executable, inputs, outputs, execution_devices=self.devices
                )
                for key, (executable, inputs, outputs) in self._read(name).items()
            }
        except Exception as error:
            path = self._path(name)
            log.warning("%s cannot be used, it is compiled again: %s", path, error)
            path.unlink(missing_ok=True)
            return {}

    def compile(self, lowered: jax.stages.Lowered, options: Any = None) -> jax.stages.Compiled:
        """The program, which `put` may then keep."""
        with _compiling() as came_from:
            program = lowered.compile(compiler_options=options)
        if came_from() == "compiler":
            self.new.add(program)
        elif came_from() == "disk":
            self.found[program] = lowered, options
        return program

    def put(self, name: str, programs: Mapping[str, jax.stages.Compiled]) -> None:
        """Adds the programs that `compile` gave, for later runs.

        What XLA has read from JAX's cache it does not write whole again. Programs are there and not
        here after a change of code that they do not follow from, or when a run was stopped before
        it could leave them: the second run that finds them so compiles them once more.
        """
        if self.folder is None:
            return
        path = self._path(name)
        again = {key: self.found[p] for key, p in programs.items() if p in self.found}
        if again and not self._asked_before(path):
            again = {}
        programs = {key: program for key, program in programs.items() if program in self.new}
        if not programs and not again:
            return
        from jax.experimental.serialize_executable import serialize

        partial = path.with_suffix(f".{os.getpid()}")
        try:
            programs |= {key: _compiled_anew(*found) for key, found in again.items()}
            content = self._read(name) | {key: serialize(p) for key, p in programs.items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(zlib.compress(pickle.dumps(content), 1))
            partial.replace(path)
            forget_unused(self.folder)
        except OSError as error:
            log.warning("compiled programs cannot be kept for later runs: %s", error)
        except Exception:  # not every backend can write its programs; they are compiled next time
            log.debug("%s is not kept", name, exc_info=True)

    def _asked_before(self, path: Path) -> bool:
        """Whether there was a call for this path before."""
        note = path.with_suffix(".asked")
        if note.exists():
            return True
        with contextlib.suppress(OSError):  # of which `put` tells when there is something to keep
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
        return False

    def _read(self, name: str) -> dict[str, tuple]:
        if not self.has(name):
            return {}
        path = self._path(name)
        os.utime(path)
        return pickle.loads(zlib.decompress(path.read_bytes()))

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        digest = self.digest.copy()
        digest.update(name.encode())
        return self.folder / f"{name}-{digest.hexdigest()[:40]}"


class ReadyCalls:
    """Calls of jitted functions by programs of a `name`; missing ones are compiled and added."""

    def __init__(self, ready: ReadyPrograms, name: str):
        self.ready, self.name = ready, name
        self.programs = ready.get(name)

    def __call__(self, key: str, function: Any, *arguments: Any, static: tuple = ()) -> Any:
        """`function(*arguments, *static)`; the key must tell programs of this name apart."""
        if key not in self.programs:
            self.programs[key] = self.ready.compile(function.lower(*arguments, *static))
        return self.programs[key](*arguments)

    def keep(self) -> None:
        """Leaves what was compiled to later runs."""
        self.ready.put(self.name, self.programs)


def _as_bytes(thing: Any) -> bytes:
    """Equal things as equal bytes: pickle's memo would tell equal texts from one that is shared."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.fast = True
    pickler.dump(thing)
    return buffer.getvalue()


def _compiled_anew(lowered: jax.stages.Lowered, options: Any) -> jax.stages.Compiled:
    """The program, not from JAX's cache: it goes by the options, and none has this one.

    It leaves out a pass that does not exist, besides those that the user leaves out.
    """
    given = re.search(r"--xla_disable_hlo_passes=(\S+)", os.environ.get("XLA_FLAGS", ""))
    passes = [*([given[1]] if given else []), f"none-{uuid.uuid4().hex}"]
    left_out = {"xla_disable_hlo_passes": ",".join(passes)}
    return lowered.compile(compiler_options=(options or {}) | left_out)


@contextlib.contextmanager
def _compiling() -> Iterator[Callable[[], str]]:
    """Yields what says where this thread's program came from: the compiler, the disk or memory.

    Of JAX's caches the one on disk tells of a hit, the one in memory does not even ask it.
    """
    asked, hits = _events.asked, _events.hits

    def came_from() -> str:
        if _events.hits > hits:
            return "disk"
        return "compiler" if _events.asked > asked else "memory"

    yield came_from


class _Events(threading.local):
    asked = hits = 0


_events = _Events()


def _count(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/compile_requests_use_cache":
        _events.asked += 1
    elif event == "/jax/compilation_cache/cache_hits":
        _events.hits += 1


jax.monitoring.register_event_listener(_count)


def code(config: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names of code in a config."""
    for path, value in leaves(config):
        if path.rpartition(".")[2] in ("_target_", "rule") and isinstance(value, str):
            yield value


@functools.cache
def surroundings() -> str:
    """What a program follows from besides its configuration, as one text."""
    sources = hashlib.sha256()
    root = Path(experiments.__file__).parent
    for path in sorted(root.rglob("*.py")):
        sources.update(path.read_bytes())
    settings = {k: str(v) for k, v in jax.config.values.items() if "cache" not in k}
    devices = jax.devices()
    parts = [
        sources.hexdigest(),
        [platform.python_version(), *map(version, DEPENDENCIES)],
        settings,
        os.environ.get("XLA_FLAGS"),
        [(device.id, device.device_kind) for device in devices],
        devices[0].client.platform_version,
        processor(),
        library.available() and library.version(),
    ]
    return json.dumps(parts, sort_keys=True)


def processor() -> list[str]:
    """What code for this processor may use: its instructions, and how many of its cores."""
    described = Path("/proc/cpuinfo")  # of Linux
    lines = described.read_text().splitlines() if described.exists() else [platform.processor()]
    flags = [line for line in lines if line.startswith(("flags", "Feat"))]
    return [platform.machine(), str(cores()), *(flags or lines)[:1]]


def forget_unused(folder: Path) -> None:
    """Deletes programs that no run has used for a month."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in folder.iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
