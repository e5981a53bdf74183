"""Programs of earlier runs, kept as text: a start that finds one neither traces nor lowers it.

JAX's compilation cache knows an executable by the text of its program. To have that text, a run has
to trace Python code and to lower what comes of it, which takes a deep network longer than to read
the executable. So the text is kept here, in a folder of that cache, with what else tracing finds:
which numbers of the config are inputs, the cost of a step, the shapes of the state.

- A file is JSON and, of a program, what `jax.export` writes of it: StableHLO. Nothing is unpickled
  and no machine code is kept. The folder must be the user's own (`machine.private_folder`).
- Its name is a hash of all that the text follows from: the config but for its traced numbers, the
  shapes of the data and what they hold for the pipeline, the source of this package, versions,
  settings and devices.
- Where a config names other code than this package's, JAX's, Flax's and optax's, nothing is kept,
  and nothing where several processes train together.
- A file that cannot be used is a warning and no more: tracing goes on as without it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import pickle
import platform
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.export
import jax.numpy as jnp

from experiments.core.config import leaves, locate
from experiments.core.experiment import Tree
from experiments.core.trust import NAMES
from experiments.machine import PACKAGE, packages, private_folder, write_whole
from experiments.ops import library

log = logging.getLogger(__name__)

FOLDER = "programs"  # in that of JAX's compilation cache
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
PLUGINS = ("jax_", "libtpu", "nvidia_")  # for GPUs and TPUs, with cuDNN: beginnings of packages
COVERED = ("experiments.", "flax.", "jax.", "optax.")  # code that a file's name follows from
UNUSED_DAYS = 30  # after which a file is deleted
NOT_CHECKED = [  # that the C library's functions and the platform are as they were: see the names
    jax.export.DisabledSafetyCheck.platform(),
    *(jax.export.DisabledSafetyCheck.custom_call(library.target(f)) for f in library.FUNCTIONS),
]

Found = TypeVar("Found")


class Programs:
    """What earlier runs have found out and lowered for configs like this one.

    Args:
      config: of a trial.
      made_from: what programs follow from besides it and what it names.
      work: counts the operations of a traced program.
    """

    def __init__(self, config: Mapping[str, Any], made_from: Any, work: Callable[[Any], int]):
        self.work = work
        code = [value for path, value in leaves(config) if path.rpartition(".")[2] in NAMES]
        covered = all(name.startswith(COVERED) for name in code if name is not None)
        self.folder = _folder() if covered and jax.process_count() == 1 else None
        if self.folder is not None:
            self._known = hashlib.sha256(_surroundings() + _as_bytes(made_from))

    def recall(self, kind: str, of: str, find: Callable[[], Found]) -> Found:
        """Return what `find` returned in an earlier run, or returns now if there was none.

        Args:
          kind, of: what it is, and what it follows from besides the data.
          find: returns numbers, texts and shapes in dicts, lists and (named) tuples.
        """
        if (kept := self._read(kind, of)) is not None:
            return _restored(kept[0])
        found = find()
        if self.folder is not None:
            try:
                self._write(kind, of, _described(found))
            except TypeError as error:
                log.debug("%s is not kept for later runs: %s", kind, error)
        return found

    def lower(
        self, kind: str, of: str, function: Callable, arguments: Sequence[Tree], **options: Any
    ) -> tuple[jax.stages.Lowered, int]:
        """Return a function as a program to be compiled, and the operations of a call.

        Args:
          kind, of: what it is, and what it follows from besides the data.
          arguments: their shapes.
          options: of `jax.jit`.
        """
        kept = self._read(kind, of)
        if kept is None and self.folder is not None:
            kept = self._export(kind, of, function, arguments)
        if kept is None:
            traced = jax.jit(function, **options).trace(*arguments)
            return traced.lower(), self.work(traced.jaxpr.jaxpr)
        exported = jax.export.deserialize(bytearray(kept[1]))
        if b"lapack_" not in kept[1]:  # of a program for a CPU JAX would import all of SciPy's
            exported = dataclasses.replace(exported, platforms=("this one",))
        operations, results = _restored(kept[0])
        structure = jax.tree.structure(results)

        def program(*arguments: Tree) -> Tree:
            return jax.tree.unflatten(structure, exported.call(*jax.tree.leaves(arguments)))

        program.__name__ = kind
        return jax.jit(program, **options).lower(*arguments), operations

    def _export(
        self, kind: str, of: str, function: Callable, arguments: Sequence[Tree]
    ) -> tuple[Any, bytes] | None:
        """Write a program and return what `_read` would; None if JAX cannot write it."""
        shapes, structure = jax.tree.flatten(arguments)
        results = []

        @jax.jit  # of leaves alone: `jax.export` knows few kinds of trees
        def flat(*leaves: jax.Array) -> list[jax.Array]:
            tree = function(*jax.tree.unflatten(structure, leaves))
            results.append(jax.tree.map(lambda _: 0, tree))
            return jax.tree.leaves(tree)

        operations = self.work(flat.trace(*shapes).jaxpr.jaxpr)
        try:
            facts = _described((operations, results[0]))
            text = jax.export.export(flat, disabled_checks=NOT_CHECKED)(*shapes).serialize()
        except (NotImplementedError, TypeError, ValueError) as error:
            log.debug("%s is not kept for later runs: %s", kind, error)
            return None
        self._write(kind, of, facts, bytes(text))
        return facts, bytes(text)

    def _read(self, kind: str, of: str) -> tuple[Any, bytes] | None:
        if self.folder is None:
            return None
        path = self._path(kind, of)
        try:
            facts, _, text = zlib.decompress(path.read_bytes()).partition(b"\n")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, zlib.error) as error:
            log.warning("%s cannot be used, it is made anew: %s", path, error)
            return None
        return json.loads(facts), text

    def _write(self, kind: str, of: str, facts: Any, text: bytes = b"") -> None:
        assert self.folder is not None
        content = zlib.compress(json.dumps(facts).encode() + b"\n" + text, 1)
        try:
            write_whole(self._path(kind, of), content)
            _forget_unused(self.folder)
        except OSError as error:
            _warn_once("no programs are kept for later runs: %s", str(error))

    def _path(self, kind: str, of: str) -> Path:
        assert self.folder is not None
        known = self._known.copy()
        known.update(of.encode())
        return self.folder / f"{kind}-{known.hexdigest()[:40]}"


_warn_once = functools.cache(log.warning)


def _folder() -> Path | None:
    """Return the folder of the files; None where JAX keeps nothing or others could write there."""
    if not (base := jax.config.values["jax_compilation_cache_dir"]):
        return None
    try:
        return private_folder(Path(base).absolute() / FOLDER)
    except OSError as error:
        _warn_once("no programs are kept for later runs: %s", str(error))
        return None


def _surroundings() -> bytes:
    """Return what a program follows from besides its config and data."""
    devices = jax.devices()
    units = jax.default_backend() == "cpu" and library.available()  # which makes XLA know them
    parts = [
        _source(),
        {name: str(value) for name, value in jax.config.values.items() if "cache" not in name},
        os.environ.get("XLA_FLAGS"),
        [(device.id, device.device_kind) for device in devices],
        devices[0].client.platform_version,
        units and library.version(),
    ]
    return json.dumps(parts, sort_keys=True).encode()


@functools.cache
def _source() -> list[str]:
    """Return a hash of this package's source, and versions."""
    source = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        source.update(path.read_bytes())
    plugins = [f"{name} {v}" for name, v in packages().items() if name.startswith(PLUGINS)]
    return [source.hexdigest(), platform.python_version(), *map(version, LIBRARIES), *plugins]


def _as_bytes(thing: Any) -> bytes:
    """Return equal things as equal bytes, which nobody reads; a memo would tell copies apart."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.fast = True
    pickler.dump(thing)
    return buffer.getvalue()


def _described(value: Any) -> Any:
    """Return a tree of numbers, texts and shapes as JSON."""
    if value is None or isinstance(value, int | str):
        return value
    if hasattr(value, "shape"):
        return {"shape": value.shape, "dtype": str(value.dtype)}
    kind = type(value)
    if not isinstance(value, dict | list | tuple):
        raise TypeError(f"{kind.__name__} cannot be written")
    items = value.items() if isinstance(value, dict) else value
    return {"type": f"{kind.__module__}.{kind.__qualname__}", "items": [*map(_described, items)]}


def _restored(value: Any) -> Any:
    """Return what `_described` was given."""
    if not isinstance(value, dict):
        return value
    if "shape" in value:
        return jax.ShapeDtypeStruct(value["shape"], jnp.dtype(value["dtype"]))
    kind, items = locate(value["type"]), [_restored(item) for item in value["items"]]
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


def _forget_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has finished it
            if path.stat().st_mtime < oldest:
                path.unlink()
