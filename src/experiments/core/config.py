"""From a composed config to objects: find, check and call what `_target_` names.

A config is a tree of plain dicts, lists and scalars. A dict with a `_target_` is a call: its other
keys are the arguments; with `_partial_: true` the call is left for later. Before anything runs,
`check` compares every value with the annotations of the function that it is an argument of, so a
bad value ends in one line that names it. `place` and `build` then work inside traced functions: a
traced scalar replaces a number of the config, and no callable needs to know.
"""

import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml

from experiments.core.callback import FOLLOWERS, Callback, callback_nodes
from experiments.core.names import locate
from experiments.errors import UserError, suggest
from experiments.objectives.units import check_units
from experiments.types import Bound, Seed, Static

SPECIAL = ("_target_", "_partial_", "pretrained")  # no arguments; `pretrained` names weights
ARTIFACT = "wandb:"  # before the name of an artifact, as in `model.pretrained`
NAMED = r"([\w.-]+/){0,2}[\w.-]+:[\w.-]+"  # such a name, with its version or alias
TRACED_GROUPS = ("model", "objective", "loss", "optim", "discriminator_optim", "schedule", "init")
# keys of a config that make no difference to a program
NO_PROGRAM = (
    *("seed", "name", "mode", "resume", "checkpoint", "logger", "cluster", "nodes"),
    *("allow", "input", "predict", "export", "population", "lr_range", "gradcheck", "callbacks"),
    "reproduce",
)
MISSING = "???"  # OmegaConf's mark for a value that must be given
FAR = 2**31 - 1  # ends of an interval from here on are named to who is beyond them

# annotations of scalars: their names in messages, and the classes of Python that they accept
SCALARS: dict[Any, tuple[str, Any]] = {
    int: ("a whole number", int),
    float: ("a number", (int, float)),
    bool: ("true or false", bool),
    str: ("text", str),
    type(None): ("null", type(None)),
}


def build(node: Any, **extra: Any) -> Any:
    """Make the object that a config node describes: call every `_target_`, innermost first.

    Args:
        node: of a config; without a `_target_` its values are built.
        extra: arguments that no file can hold (an input shape, an initializer, a key), for the
            outermost call only.
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
    """Return every (dotted path, scalar) of a config; list items are addressed by their index."""
    if not isinstance(node, Mapping | list | tuple):
        return [(path, node)]
    return [leaf for _, where, value in _entries(node, path) for leaf in leaves(value, where)]


def _entries(node: Any, path: str) -> Iterator[tuple[Any, str, Any]]:
    """Yield (key or index, dotted path, value) of what is in a mapping or a list."""
    if isinstance(node, Mapping | list | tuple):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield key, f"{path}.{key}" if path else str(key), value


def static(node: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted path of every argument that is annotated as `Static`."""
    if isinstance(node, Mapping):
        hints = _hints(locate(node["_target_"])) if "_target_" in node else {}
        for key, where, value in _entries(node, path):
            if any(isinstance(mark, Static) for mark in typing.get_args(hints.get(key))):
                yield where
            yield from static(value, where)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the floats of a config that may be traced, by dotted path.

    A float that is exactly 0 switches a feature off and stays in the program as that.
    """
    from experiments.core.schedules import scale_of  # imports JAX

    parts = {group: config.get(group) for group in TRACED_GROUPS}
    parts["data"] = {"augment": (config.get("data") or {}).get("augment")}
    constants = set(static(parts))
    return {
        path: value
        for path, value in leaves(parts)
        if isinstance(value, float) and value != 0 and math.isfinite(value)
        if path not in constants
    } | scale_of(config.get("schedule"))


def static_key(config: Mapping[str, Any], traced: Iterable[str]) -> str:
    """Return a text that is equal for configs that differ in the paths `traced` alone."""
    blank = dict.fromkeys(traced, "an input")  # unlike None, which is that it is not used
    rest = {group: value for group, value in config.items() if group not in NO_PROGRAM}
    return json.dumps(place(rest, blank), sort_keys=True)


def place(node: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """Return a copy of a config with other values at certain dotted paths, traced or not."""
    if path in values:
        return values[path]
    if not isinstance(node, Mapping | list | tuple):
        return node
    placed = {key: place(value, values, where) for key, where, value in _entries(node, path)}
    return placed if isinstance(node, Mapping) else list(placed.values())


def check_config(config: Mapping[str, Any]) -> None:
    """Check a whole config before anything is read or compiled; what can be built of it is.

    Raises:
        UserError: a value is missing, or no run would take it.
    """
    missing = sorted(path for path, value in leaves(config) if value == MISSING)
    if missing:
        raise UserError(f"{missing[0]} has no value; say {missing[0]}=...")
    for key, value, hint in (
        ("seed", config["seed"], Seed),
        ("model.pretrained", config["model"]["pretrained"], str | None),
        ("freeze", config["freeze"], str | list[str] | None),
    ):
        if complaint := mismatch(value, hint):
            raise UserError(f"{key}={value}: must be {complaint}")
    source = config["model"]["pretrained"] or ""
    if source.startswith(ARTIFACT) and not re.fullmatch(ARTIFACT + NAMED, source):
        wanted = f"{ARTIFACT}<entity>/<project>/<name>:<alias>"
        raise UserError(f"model.pretrained={source}: must be {wanted}")
    for name, node in (config.get("metrics") or {}).items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"metrics.{name}: must name a function: {{_target_: module.function}}")
    groups = {group: node for group, node in config.items() if isinstance(node, Mapping)}
    callbacks = callback_nodes(config)
    check({g: node for g, node in groups.items() if g not in FOLLOWERS} | callbacks)
    for group in ("data", "init", "schedule", "optim", "discriminator_optim"):
        build(config.get(group))  # for the limits that a class checks itself
    check_units(objective_of(config), config["trainer"]["units"])
    for path, node in callbacks.items():
        try:
            made = build(node)
        except TypeError as error:  # an argument is missing
            raise UserError(f"{path}: {error}") from error
        if not isinstance(made, Callback):
            problem = "is no callback; derive it from experiments.Callback"
            raise UserError(f"{path}._target_={node['_target_']}: it {problem}")


def by_target(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups, of objective and loss, that hold a choice for each kind of target."""
    nodes = {group: config.get(group) for group in ("objective", "loss")}
    return {g: node for g, node in nodes.items() if node is not None and "_target_" not in node}


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the objective and the loss that the targets ask for.

    Raises:
        UserError: the data cannot be read, or have no targets.
    """
    groups = by_target(config)
    if not groups or any(value == MISSING for _, value in leaves(config["data"])):
        return config
    check(config["data"], "data")
    task = build(config["data"]).predicts
    if task is None:
        raise UserError(
            "the data have no targets: choose a model that needs none, such as model=autoencoder"
        )
    return config | {group: node[task] for group, node in groups.items()}


def objective_of(config: Mapping[str, Any], num_classes: int = 2) -> Any:
    """Return the objective of a config, with its loss; some objectives are their own."""
    return build(config["objective"], loss=build(config.get("loss")), num_classes=num_classes)


def check(node: Any, path: str = "") -> None:
    """Check every argument of every `_target_` against that function's signature.

    Raises:
        UserError: an argument is unknown, of the wrong type or out of bounds; the message begins
            with its dotted path.
    """
    if isinstance(node, Mapping) and "_target_" in node:
        if not isinstance(node["_target_"], str):
            raise UserError(f"{path}._target_ must be a dotted name, not {node['_target_']!r}")
        arguments = {key: value for key, value in node.items() if key not in SPECIAL}
        try:
            target = locate(node["_target_"])
        except UserError as error:
            raise UserError(f"{path}._target_: {error}") from error
        check_arguments(target, arguments, path)
        if hasattr(target, "check_config"):  # what annotations cannot say
            for call in target.check_config(arguments, path) or ():  # further calls to check
                check_arguments(*call)
    for _, where, value in _entries(node, path):
        check(value, where)


def check_arguments(target: Callable, arguments: Mapping[str, Any], path: str) -> None:
    """Check the arguments of one call by the annotations of `target`; raises like `check`."""
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
                shown = "null" if value is None else value
                raise UserError(f"{where}={shown}: must be {wanted}")


def mismatch(value: Any, hint: Any) -> str | None:
    """Compare a value of a config with an annotation.

    Returns:
        None if the value conforms, else what it must be: "a number, at least 0 and at most 1". The
        text is empty for a class that no scalar is an instance of, and that has no plain name.
    """
    if hint is Any:
        return None
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Annotated:
        bounds = [mark for mark in arguments[1:] if isinstance(mark, Bound)]
        complaint = mismatch(value, arguments[0])
        if complaint is None and all(bound.admits(value) for bound in bounds):
            return None
        near = [b for b in bounds if b.limit < FAR or (complaint is None and not b.admits(value))]
        return ", ".join(filter(None, [complaint, " and ".join(map(str, near))]))
    if origin in (typing.Union, types.UnionType):
        complaints = [mismatch(value, option) for option in arguments]
        if None in complaints:
            return None
        # the array types in the unions of libraries say nothing to who writes a config
        return " or ".join(dict.fromkeys(filter(None, complaints))) or "a number"
    if origin is Literal:
        if value in arguments:
            return None
        names = [str(argument) for argument in arguments]
        return f"one of {', '.join(names)}{suggest(str(value), names)}"
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return "a list"
        return _mismatch_inside(value, arguments[:1], "a list")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return "a group of keys"
        return _mismatch_inside(value.values(), arguments[1:], "a group of keys")
    if hint not in SCALARS:  # a class of some library: scalars are no instances of it
        scalar = value is None or isinstance(value, str | int | float)
        return "" if isinstance(hint, type) and scalar and not isinstance(value, hint) else None
    name, kinds = SCALARS[hint]
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        return name
    if isinstance(value, int) and abs(value) >= 2**31:
        return f"{name} smaller than 2147483648"  # the integers of devices have 32 bits
    return None


def _mismatch_inside(values: Iterable[Any], hint: tuple, container: str) -> str | None:
    """Compare all values of a container with its annotation, if it has one."""
    complaints = (mismatch(value, hint[0]) for value in values if hint)
    inner = next((complaint for complaint in complaints if complaint is not None), None)
    return None if inner is None else f"{container} in which each is {inner}"


@functools.cache
def _parameters(target: Callable) -> Mapping[str, inspect.Parameter]:
    """Return the parameters that a config may give: not a typed `**`, which the code fills."""
    try:
        parameters = inspect.signature(_function(target)).parameters
    except ValueError:  # a builtin without a signature accepts any argument
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    hidden = {n for n, hint in _hints(target).items() if typing.get_origin(hint) is typing.Unpack}
    hidden |= {n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY}
    if inspect.isclass(target):
        hidden.add("self")
    return {n: p for n, p in parameters.items() if n not in hidden}


@functools.cache
def _hints(target: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(_function(target), include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        return {}


def _function(target: Callable) -> Callable:
    """Return the function with a target's signature; the metaclass of a class may hide it."""
    return target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]


class Dumper(yaml.CSafeDumper):
    """Writes text that OmegaConf reads as a number, such as 1e3, in quotes."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        style = "'" if re.fullmatch(r"[-+]?[\d._]+(e[-+]?\d+)?", text, re.I) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


Dumper.add_representer(str, Dumper.represent_text)
