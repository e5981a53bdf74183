"""Blocks of a deep network, of which a training may save the inputs alone.

The backward pass then computes again what is inside them: less memory for more time (Chen et al.
2016, "Training deep nets with sublinear memory cost").
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from flax import nnx

from experiments.errors import UserError

_blocks: ContextVar[list[str] | None] = ContextVar("blocks", default=None)


@contextlib.contextmanager
def recomputing(wanted: bool) -> Iterator[None]:
    """Have `as_block` save its inputs alone, in what is traced within, if that is `wanted`.

    Raises:
        UserError: there was no block within.
    """
    met: list[str] | None = [] if wanted else None
    token = _blocks.set(met)
    try:
        yield
    finally:
        _blocks.reset(token)
    if met == []:
        raise UserError(
            "trainer.remat=true: this model has no blocks that could be computed again; see "
            "docs/devices.md for those that have, and how a model of your own says its blocks"
        )


def is_recomputing() -> bool:
    """Return True within `recomputing`, to a block that looks by itself to what it saves."""
    if (met := _blocks.get()) is not None:
        met.append("itself")
    return met is not None


def as_block(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)`: one of the blocks that make a network deep.

    Within `recomputing` (`trainer.remat=true`) the backward pass computes again what is inside, in
    the place of reading it from memory. Statistics are updated once, and a dropout has one mask.

    Args:
      function: a module, or what calls modules that are among the `arguments`.
      arguments: modules, arrays and random streams.
    """
    if (met := _blocks.get()) is None:
        return function(*arguments)
    met.append(getattr(function, "__name__", type(function).__name__))
    if isinstance(function, nnx.Module):
        return nnx.remat(lambda module, *rest: module(*rest))(function, *arguments)
    return nnx.remat(lambda *given: function(*given))(*arguments)
