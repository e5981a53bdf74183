"""Transfer learning: which weights start from found ones, and which stay as they are.

Weights and modules go by dotted names such as `stages.0.1.kernel`, as `mode=summary` shows them. A
pattern with the wildcards of a shell (`*`, `?`, `[0-9]`) stands for every name that it matches, and
for all that is inside of a module that it matches: `stages` means all stages.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx, traverse_util

from experiments.errors import UserError, suggest

Tree = Any
Patterns = Sequence[str]


class Agreement(NamedTuple):
    """The names of found weights that fit wanted ones or do not; shapes are (found, wanted)."""

    fitting: list[str]
    of_other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unwanted: list[str]
    new: list[str]


def named(tree: Tree) -> dict[str, Any]:
    """Return the leaves of nested dicts by dotted name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(path: tuple) -> str:
    """Return a path of `jax.tree_util` as a dotted name."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def matches(name: str, pattern: str) -> bool:
    """Return True if a pattern stands for a name or for a module that it is in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def check_patterns(patterns: Iterable[str], names: Iterable[str], key: str) -> None:
    """Raise `UserError` for a pattern of the config's `key` that stands for nothing."""
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            parts = sorted({name.partition(".")[0] for name in names})
            hint = suggest(pattern, parts) or f"; the model has {', '.join(parts)}"
            raise UserError(f"{key}: no weight is called {pattern}{hint}")


def split(params: Tree, frozen: Patterns) -> tuple[Tree, Tree]:
    """Return (trained, frozen) parameters; `merged` puts them together again."""
    parts: tuple[Tree, Tree] = ({}, {})
    for path, leaf in traverse_util.flatten_dict(params).items():
        name = ".".join(map(str, path))
        parts[any(matches(name, pattern) for pattern in frozen)][path] = leaf
    return traverse_util.unflatten_dict(parts[0]), traverse_util.unflatten_dict(parts[1])


def check_frozen(params: Tree, frozen: Patterns) -> None:
    """Raise `UserError` if `freeze` names what is not there or leaves nothing to train."""
    check_patterns(frozen, named(params), "freeze")
    if not split(params, frozen)[0]:
        raise UserError(f"freeze={','.join(frozen)} leaves nothing to train")


def freeze_statistics(model: nnx.Module, frozen: Patterns) -> None:
    """Put frozen modules into evaluation mode, so that their batch statistics do not change."""
    for path, module in nnx.iter_modules(model):
        if any(matches(".".join(map(str, path)), pattern) for pattern in frozen):
            module.eval()


def agreement(found: Mapping[str, Any], wanted: Tree) -> Agreement:
    """Compare arrays (or their shapes) by name and shape."""
    shapes = {name: tuple(leaf.shape) for name, leaf in named(wanted).items()}
    given = {name: tuple(leaf.shape) for name, leaf in found.items()}
    common = sorted(given.keys() & shapes.keys())
    others = [name for name in common if given[name] != shapes[name]]
    return Agreement(
        fitting=[name for name in common if name not in others],
        of_other_shape={name: (given[name], shapes[name]) for name in others},
        unwanted=sorted(given.keys() - shapes.keys()),
        new=sorted(name for name in shapes if given.get(name) != shapes[name]),
    )


def fitted(found: Mapping[str, Any], wanted: Tree) -> Tree:
    """Return `wanted` with the values of `found` wherever name and shape agree."""

    def chosen(path: tuple, leaf: Any) -> Any:
        other = found.get(name_of(path))
        fits = other is not None and tuple(other.shape) == tuple(leaf.shape)
        return jax.device_put(np.asarray(other, leaf.dtype)) if fits else leaf

    return jax.tree_util.tree_map_with_path(chosen, wanted)
