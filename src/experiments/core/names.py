"""From a dotted name in a config to the function or class that it stands for."""

import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from experiments.errors import UserError, suggest

PACKAGE = __name__.partition(".")[0]
LIBRARIES = frozenset(
    (
        *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")),
        Path(__file__).parents[1],
    )
)
"""Folders of code that is not the user's own."""


def locate(target: str) -> Any:
    """Return the object that a dotted name stands for, such as `optax.scale_by_adam`.

    Raises:
        UserError: a module or an attribute on the way does not exist, or code of the user's own
            cannot be imported.
    """
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:split])
        try:
            found = importlib.import_module(name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name
            if missing and f"{name}.".startswith(f"{missing}."):
                continue  # another error is one in the module, or in what it imports
            if parts[0] == PACKAGE:
                raise
            raise UserError(f"{target!r} cannot be imported: {_place_of(error)}") from error
        for attribute in parts[split:]:
            if not hasattr(found, attribute):
                hint = _hidden(parts[0]) or suggest(attribute, dir(found))
                raise UserError(f"{target!r} does not exist: {name} has no {attribute!r}{hint}")
            found = getattr(found, attribute)
        return found
    here = sorted(path.stem for path in Path.cwd().glob("*.py"))
    hint = suggest(parts[0], here) or f"; there is no {parts[0]}.py in {Path.cwd()}"
    raise UserError(f"{target!r} names no importable module{hint}")


def _hidden(package: str) -> str:
    """Say that a file in the working directory is not the module that its name stands for."""
    file = Path.cwd() / f"{package}.py"
    if not file.is_file() or getattr(sys.modules[package], "__file__", None) == str(file):
        return ""
    return f"; {file} is hidden by a library's module of that name, so give it another"


def _place_of(error: Exception) -> str:
    """Return file and line of an error that an import ended with, and what it says."""
    said = str(error) or type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    files = [f for f in frames if not f.filename.startswith("<") and f.filename != __file__]
    own = [frame for frame in files if not LIBRARIES.intersection(Path(frame.filename).parents)]
    place = (own or files or frames)[-1]
    return f"{place.filename}:{place.lineno}: {type(error).__name__}: {said.splitlines()[0]}"
