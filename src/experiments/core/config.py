"""From a composed config to objects: find, check and call what `_target_` names.

A config is a tree of plain dicts, lists and scalars. A dict with a `_target_` is a call: its other
keys are the arguments; with `_partial_: true` the call is left for later. Before anything runs,
`check` holds every value against the annotations of the function it is meant for, so a bad value
ends in one line that names it. `place` and `build` then work inside traced functions: a traced
scalar takes the place of a number in the config and no callable needs to know.
"""

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from experiments.errors import UserError, suggest
from experiments.types import Range, Static

SPECIAL = ("_target_", "_partial_", "pretrained")  # no arguments; the last is for the weights


def locate(target: str) -> Any:
    """The object that a dotted name stands for, e.g. `optax.scale_by_adam`.

    Raises `UserError` when a module or an attribute on the way does not exist.
    """
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:split])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists; something that it imports does not
            continue
        for attribute in parts[split:]:
            if not hasattr(found, attribute):
                hint = suggest(attribute, dir(found))
                raise UserError(f"{target!r} does not exist: {name} has no {attribute!r}{hint}")
            found = getattr(found, attribute)
        return found
    raise UserError(f"{target!r} names no importable module")


def build(node: Any, **extra: Any) -> Any:
    """Makes what a config node describes: calls every `_target_`, innermost first.

    `extra` are arguments that no file can hold (an input shape, an initializer, a key); they go
    to the outermost call only.
    """
    if isinstance(node, Mapping):
        if "_target_" not in node:
            return {key: build(value) for key, value in node.items()}
        target = locate(node["_target_"])
        arguments = {key: build(value) for key, value in node.items() if key not in SPECIAL}
        arguments |= extra
        if node.get("_partial_", False):
            return functools.partial(target, **arguments)
        return target(**arguments)
    if isinstance(node, list | tuple):
        return [build(value) for value in node]
    return node


def leaves(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every (dotted path, scalar) of a config; list items are addressed by their index."""
    found: list[tuple[str, Any]] = []

    def walk(node: Any, path: str) -> None:
        if node is None or isinstance(node, str | int | float):  # most are, and this is soon seen
            found.append((path, node))
        elif isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        elif isinstance(node, list | tuple):
            for index, value in enumerate(node):
                walk(value, f"{path}.{index}")
        else:
            found.append((path, node))

    walk(node, path)
    return found


def static(node: Any, path: str = "") -> Iterator[str]:
    """The dotted path of every argument whose annotation says that it is `Static`."""
    if isinstance(node, Mapping):
        hints = _hints(locate(node["_target_"])) if "_target_" in node else {}
        for key, value in node.items():
            where = f"{path}.{key}" if path else str(key)
            if any(isinstance(mark, Static) for mark in typing.get_args(hints.get(key))):
                yield where
            yield from static(value, where)


def place(node: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """A copy of the config in which `values` (dotted path to number, traced or not) stand in."""
    if node is None or isinstance(node, str | int | float):
        return values.get(path, node)
    if isinstance(node, Mapping):
        return {
            key: place(value, values, f"{path}.{key}" if path else str(key))
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [place(value, values, f"{path}.{index}") for index, value in enumerate(node)]
    return values.get(path, node)


def check(node: Any, path: str = "") -> None:
    """Holds every argument of every `_target_` against that function's signature.

    Raises `UserError` with the dotted path for an unknown argument, a value of the wrong type or
    one outside its `Range`.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            if not isinstance(node["_target_"], str):
                raise UserError(f"{path}._target_ must be a dotted name, not {node['_target_']!r}")
            arguments = {key: value for key, value in node.items() if key not in SPECIAL}
            target = locate(node["_target_"])
            check_arguments(target, arguments, path)
            if hasattr(target, "check_config"):  # what annotations cannot say
                target.check_config(arguments, path)
        for key, value in node.items():
            check(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            check(value, f"{path}.{index}")


def check_arguments(target: Callable, arguments: Mapping[str, Any], path: str) -> None:
    """Checks the arguments of one call by the annotations of `target`; see `check`."""
    if not callable(target):
        raise UserError(f"{path}: {target!r} cannot be called")
    parameters = _parameters(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for name, value in arguments.items():
        where = f"{path}.{name}" if path else name
        if name not in parameters:
            if open_ended:
                continue
            raise UserError(f"{where}: no such argument{suggest(name, parameters)}")
        if name in hints and not (isinstance(value, Mapping) and "_target_" in value):
            complaint = mismatch(value, hints[name])
            if complaint is not None:
                wanted = complaint or f"a {getattr(hints[name], '__name__', hints[name])}"
                raise UserError(f"{where}={_show(value)}: must be {wanted}")


def mismatch(value: Any, hint: Any) -> str | None:
    """What `value` would have to be to conform to the annotation, or None if it does."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if origin is Annotated:
        complaint = mismatch(value, arguments[0])
        ranges = [r for r in arguments[1:] if isinstance(r, Range)]
        if complaint is not None:
            return f"{complaint}, {ranges[0]}" if ranges else complaint
        outside = [r for r in ranges if isinstance(value, int | float) and value not in r]
        return str(outside[0]) if outside else None
    if origin in (typing.Union, types.UnionType):
        complaints = []
        for option in arguments:
            if (complaint := mismatch(value, option)) is None:
                return None
            complaints.append(complaint)
        # array types in optax's unions say nothing to the writer of a config
        return " or ".join(dict.fromkeys(c for c in complaints if c)) or "a number"
    if origin is Literal:
        if value in arguments:
            return None
        near = suggest(str(value), [str(a) for a in arguments])
        return "one of " + ", ".join(str(a) for a in arguments) + near
    if origin in (list, tuple) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            return "a list"
        inner = _first_mismatch(value, arguments[0] if arguments else Any)
        return None if inner is None else f"a list in which each is {inner}"
    if (isinstance(origin, type) and issubclass(origin, Mapping)) or hint is dict:
        if not isinstance(value, Mapping):
            return "a group of keys"
        inner = _first_mismatch(value.values(), arguments[1] if arguments else Any)
        return None if inner is None else f"a group of keys in which each is {inner}"
    return _scalar_mismatch(value, hint)


def _first_mismatch(values: Iterable[Any], hint: Any) -> str | None:
    complaints = (mismatch(value, hint) for value in values)
    return next((complaint for complaint in complaints if complaint is not None), None)


def _scalar_mismatch(value: Any, hint: Any) -> str | None:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint is None or hint is type(None):
        return None if value is None else "null"
    if hint not in names:  # some other class: scalars of a config are no instance of it
        scalar = value is None or isinstance(value, str | int | float)
        return "" if isinstance(hint, type) and scalar and not isinstance(value, hint) else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and isinstance(value, int) and hint in (int, float) and abs(value) >= 2**31:
        return f"{names[hint]} smaller than 2147483648"  # what fits the device's integers
    fits = {
        int: isinstance(value, int) and number,
        float: number,
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    return None if fits[hint] else names[hint]


@functools.cache
def _parameters(target: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        if inspect.isclass(target):  # its metaclass (flax's, say) may hide the signature
            parameters = dict(inspect.signature(target.__init__).parameters)
            parameters.pop("self", None)
            return parameters
        parameters = dict(inspect.signature(target).parameters)
        return {n: p for n, p in parameters.items() if p.kind is not p.POSITIONAL_ONLY}
    except ValueError:  # a builtin without a signature takes what it is given
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


@functools.cache
def _hints(target: Callable) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        return {}


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
