"""Adam's step for all weights in one pass through memory (`adam.c`).

XLA's CPU backend makes a loop for each result, three an array, which read and write ten arrays
where seven do. Without them an autoencoder's step takes 0.90 to 0.95 of the time, VGG-16's 0.92.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching

from experiments.ops.foreign import Aliases, batch, lanes, set_up
from experiments.ops.product import stock_only, usable

Arrays = Sequence[jax.Array]


class Settings(NamedTuple):
    """How weights w with the gradient g are stepped, numbers.

    If `accept`, else nothing changes: m ← b1 m + rest1 g, v ← b2 v + rest2 g², and
    w ← w − size · m / (√(v · correction) + eps) − decay · w.
    """

    b1: Any
    rest1: Any  # 1 − b1, which float32 cannot say exactly enough
    b2: Any
    rest2: Any
    correction: Any  # of v's bias
    eps: Any
    size: Any  # of the step; with the correction of m's bias
    decay: Any
    accept: Any


def is_usable(*arrays: jax.Array) -> bool:
    """Whether `step` takes these."""
    return not stock_only() and usable(*arrays)


def step(
    settings: Sequence[Settings],
    kinds: Sequence[int],
    weights: Arrays,
    gradients: Arrays,
    means: Arrays,
    squares: Arrays,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """The new weights, means m and means of squares v, arrays of any shape.

    `kinds` says for each which of the `settings` are its own.
    """
    rows = [jnp.stack([jnp.asarray(x, jnp.float32) for x in row]) for row in settings]
    arrays = (*weights, *gradients, *means, *squares)
    results = _run(jnp.stack(rows), *arrays, kinds=tuple(kinds))
    count = len(weights)
    return results[:count], results[count : 2 * count], results[2 * count :]


# settings [kinds, 9] and arrays of any shape; or with lanes in front, if the settings have them: an
# axis of one for a program without lanes would have XLA copy what is replaced
adam_p = Primitive("adam_step")
adam_p.multiple_results = True


def _run(*arrays: jax.Array, kinds: tuple[int, ...]) -> list[jax.Array]:
    return adam_p.bind(*arrays, kinds=kinds)


def _replaced(arrays: Sequence[Any]) -> list[int]:
    """Which of the operands are replaced: all weights, means and means of squares."""
    count = len(arrays) // 4
    kinds = [range(1 + kind * count, 1 + (kind + 1) * count) for kind in (0, 2, 3)]
    return [index for kind in kinds for index in kind]


@adam_p.def_abstract_eval
def _(settings, *arrays, kinds):
    old = [(settings, *arrays)[i] for i in _replaced(arrays)]
    if settings.ndim == 2:
        return old
    count = lanes(settings, *arrays)
    return [array.update(shape=(count, *array.shape[1:])) for array in old]


def _in_place(context: Any) -> Aliases:
    given, results = context.avals_in, context.avals_out
    pairs = enumerate(_replaced(given))
    return {i: j for j, i in pairs if given[i].shape == results[j].shape}


def _batch(
    arrays: Arrays, axes: Sequence[int | None], kinds: tuple[int, ...]
) -> tuple[list[jax.Array], list[int]]:
    """The first lanes, or more of them."""
    if arrays[0].ndim - (axes[0] is not None) == 3:
        return batch(_run, arrays, axes, kinds=kinds)
    laned = [
        a[None] if i is None else jnp.moveaxis(a, i, 0) for a, i in zip(arrays, axes, strict=True)
    ]
    results = _run(*laned, kinds=kinds)
    return results, [0] * len(results)


set_up(adam_p, _run, lambda kinds: list(kinds), _in_place)
batching.primitive_batchers[adam_p] = _batch
