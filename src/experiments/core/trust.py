"""The names that a config from elsewhere may call: one of a run folder, a study or a sweep file.

To build such a config is to call what it names, and it may have been sent by anybody. So it may
name models, losses, optimizers and functions of arrays, whatever the user's own config files name,
and packages that the user allows: `allow=[mypackage]`. Interpolations that read more than the
config itself, such as `${oc.env:...}`, are refused unless an own config file has the same.

Code in the working directory can be imported, yet it counts as any other package: a run folder may
have been unpacked there. What is in the folder of a run or a study is not even importable.
"""

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.core.config import leaves
from experiments.core.names import locate
from experiments.errors import UserError

PACKAGE = __name__.partition(".")[0]
LIBRARIES = ("flax", "jax", "jaxlib", "optax")
ROOMS = (
    *(f"{PACKAGE}.{room}" for room in ("models", "objectives")),
    *(f"{PACKAGE}.core.{room}" for room in ("initializers", "optim", "schedules")),
    *(f"jax.{room}" for room in ("lax", "nn", "numpy", "random", "scipy")),
    *("flax.linen", "flax.nnx", "optax"),
)
"""Packages and modules of which a config may name whatever is defined in them."""

NAMES = ("_target_", "rule")  # keys whose values are called
# of nodes of the config itself, and of what Hydra knows of the command
HARMLESS = re.compile(r"\$\{(?:[\w.\[\]]*|(?:hydra|now|oc\.select|unique):[^${}]*)\}")

_folders: tuple[Path, ...] = ()
_packages: tuple[str, ...] = ()


def allow(folders: Iterable[Path], packages: Any) -> None:
    """Set what this process trusts: folders of the user's own config files, and packages.

    Raises:
        UserError: `packages` is no list of names.
    """
    global _folders, _packages
    listed = isinstance(packages, Sequence) and not isinstance(packages, str)
    if not listed or not all(isinstance(package, str) for package in packages):
        raise UserError(f"allow={packages}: must be a list of packages: allow=[mypackage]")
    _folders, _packages = tuple(folders), tuple(packages)


def own_folders() -> tuple[Path, ...]:
    """Return the folders of the user's own config files."""
    return _folders


def allows(name: str) -> bool:
    """Return whether the user allows what has this name."""
    return name in _packages


def arguments() -> list[str]:
    """Return what to say on the command line of a process that is to trust the same packages."""
    return [f"allow=[{','.join(_packages)}]"] if _packages else []


def vet(config: Any, source: Any) -> None:
    """Check the names and interpolations of a config that is not resolved; imports nothing.

    Raises:
        UserError: it names or reads what it may not; the message begins with the key.
    """
    for path, value in leaves(config):
        if path.rpartition(".")[2] in NAMES and value is not None and not _may_name(str(value)):
            raise UserError(_refusal(path, value, source))
        if "${" in HARMLESS.sub("", str(value)) and not says(path, value):
            raise UserError(
                f"{path}={value}: the config of {source} may not read this; say {path}=..."
            )


def vet_objects(config: Any, source: Any) -> None:
    """Check that what a config names, and `vet` let pass, is also defined where it may be.

    A module has names of all that it imports: `optax.nadam` is its own, `jax.numpy.load` NumPy's.

    Raises:
        UserError: it is not, or does not exist.
    """
    for path, value in leaves(config):
        if path.rpartition(".")[2] in NAMES and value not in (None, *_own_names(_folders)):
            try:
                *reached, home = _homes(value)
            except UserError as error:
                raise UserError(f"{path}={value}: {error}") from error
            if home.partition(".")[0] not in LIBRARIES:  # whose functions are in private modules
                reached.append(home)
            for module in reached:
                if not _within(module, _trusted()):
                    raise UserError(_refusal(path, value, source, module.partition(".")[0]))


def says(path: str, value: Any) -> bool:
    """Return whether the user's own config files hold a value under this key."""
    return (path.rpartition(".")[2], str(value)) in _own(_folders)


def _refusal(path: str, value: Any, source: Any, home: str | None = None) -> str:
    package = home or str(value).partition(".")[0]
    of = f", which is of {home}" if home else ""
    advice = f"; if you trust it: allow=[{package}]" if package not in (PACKAGE, *LIBRARIES) else ""
    return f"{path}={value}: the config of {source} may not name this{of}{advice}"


def _may_name(name: str) -> bool:
    if name in _own_names(_folders):
        return True
    public = all(part.isidentifier() and not part.startswith("_") for part in name.split("."))
    return public and _within(name, _trusted())


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _trusted() -> tuple[str, ...]:
    """Return `ROOMS`, the packages of others that own config files name, and those allowed."""
    own = {name.partition(".")[0] for name in _own_names(_folders)}
    return (*ROOMS, *own.difference([PACKAGE, *LIBRARIES]), *_packages)


@functools.cache
def _own(folders: tuple[Path, ...]) -> frozenset[tuple[str, str]]:
    """Return the values of the user's own config files, each with its key."""
    found = ((folder, path) for folder in folders for path in sorted(folder.rglob("*.yaml")))
    files = (path for folder, path in found if path.relative_to(folder).parts[0] != "hydra")
    values = set()
    for path in files:
        with contextlib.suppress(yaml.YAMLError):  # which is said where the file is composed
            content = yaml.load(path.read_text("utf-8", "replace"), yaml.CSafeLoader)
            values |= {(where.rpartition(".")[2], str(value)) for where, value in leaves(content)}
    return frozenset(values)


@functools.cache
def _own_names(folders: tuple[Path, ...]) -> frozenset[str]:
    """Return what the user's own config files call."""
    return frozenset(value for key, value in _own(folders) if key in NAMES)


def _homes(name: str) -> Iterator[str]:
    """Yield the modules that an object is reached through by attributes, and at last its own."""
    found, parts = locate(name), name.split(".")
    outer = (".".join(parts[:depth]) for depth in range(2, len(parts)))
    reached = [locate(path) for path in outer if path not in sys.modules]
    while isinstance(found, functools.partial):
        found = found.func
    for one in (*reached, found):
        home = one.__name__ if inspect.ismodule(one) else getattr(one, "__module__", None)
        if one is found and getattr(one, "__name__", None) == "load":  # which unpickles files
            home = "pickle"
        yield home if isinstance(home, str) else type(one).__module__
