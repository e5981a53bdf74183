"""Functions of the C library (`library.py`) as operations of JAX.

Their arrays have an axis of lanes in front. Lanes have nothing to do with each other; an array with
a single one stands for all lanes of the others.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from experiments.ops import library

Aliases = dict[int, int]  # operands whose memory a result takes


def set_up(
    primitive: Primitive,
    operation: Callable[..., Any],
    options: Callable[..., list[int]],
    aliases: Callable[[Any], Aliases] = lambda context: {},
) -> None:
    """How an operation is compiled, run by itself and mapped over.

    Args:
      primitive: named as the function of the library.
      operation: applies it to arrays and its parameters.
      options: of its parameters, the numbers that the function is told.
      aliases: of the operands and results that a program has.
    """

    def lower(context, *operands, **parameters):
        if not library.available():
            raise RuntimeError("there is no library of matrix units (`product.usable` says so)")
        rule = jax.ffi.ffi_lowering(
            library.target(primitive.name), operand_output_aliases=aliases(context)
        )
        return rule(context, *operands, options=np.array(options(**parameters), np.int64))

    def run(*arrays, **parameters):
        return jax.jit(functools.partial(operation, **parameters))(*arrays)

    mlir.register_lowering(primitive, lower, platform="cpu")
    batching.primitive_batchers[primitive] = functools.partial(batch, operation)
    primitive.def_impl(run)


def lanes(*arrays: Any) -> int:
    """How many lanes an operation on these has."""
    return max(array.shape[0] for array in arrays)


def batch(
    operation: Callable[..., Any],
    arrays: Sequence[jax.Array],
    axes: Sequence[int | None],
    **parameters: Any,
) -> tuple[Any, Any]:
    """The operation with new lanes in front of those that are there; a rule of vmap."""
    size = next(a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None)
    arrays = [
        a[None] if i is None else jnp.moveaxis(a, i, 0) for a, i in zip(arrays, axes, strict=True)
    ]
    old = max(a.shape[1] for a in arrays)
    flat = []
    for a in arrays:
        if a.shape[:2] != (1, 1):  # one that stands for all lanes may stay one
            a = jnp.broadcast_to(a, (size, old, *a.shape[2:]))
        flat.append(a.reshape(-1, *a.shape[2:]))
    results = operation(*flat, **parameters)
    results = jax.tree.map(lambda r: r.reshape(size, old, *r.shape[1:]), results)
    return results, jax.tree.map(lambda _: 0, results)
