"""Functions of the C library (`library.py`) as primitives of JAX.

The first axis of their arrays is that of independent trials, over which `vmap` maps. An array with
a single trial belongs to all trials of the others.
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

Aliases = dict[int, int]  # index of an operand: that of the result which takes its memory


def define(
    primitive: Primitive,
    options: Callable[..., list[int]],
    aliases: Callable[[Any], Aliases] = lambda context: {},
) -> None:
    """Define how a primitive is compiled, evaluated eagerly and batched.

    Args:
      primitive: has the name of a function of the library.
      options: gives the integers that are passed to the function, from the parameters.
      aliases: gives the results that take the memory of operands, from the context of the lowering.
    """

    def lower(context, *operands, **parameters):
        if not library.available():
            raise RuntimeError("there is no C library here (`backend.usable` says so)")
        rule = jax.ffi.ffi_lowering(
            library.target(primitive.name), operand_output_aliases=aliases(context)
        )
        return rule(context, *operands, options=np.array(options(**parameters), np.int64))

    def run(*arrays, **parameters):
        return jax.jit(functools.partial(primitive.bind, **parameters))(*arrays)

    mlir.register_lowering(primitive, lower, platform="cpu")
    batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
    primitive.def_impl(run)


def trials(*arrays: Any) -> int:
    """Return the number of trials of an operation on these arrays."""
    return max(array.shape[0] for array in arrays)


def _batch(
    primitive: Primitive,
    arrays: Sequence[jax.Array],
    axes: Sequence[int | None],
    **parameters: Any,
) -> tuple[Any, Any]:
    """Bind arrays with a new mapped axis; its length multiplies the number of trials."""
    size = next(a.shape[i] for a, i in zip(arrays, axes, strict=True) if i is not None)
    arrays = [
        a[None] if i is None else jnp.moveaxis(a, i, 0) for a, i in zip(arrays, axes, strict=True)
    ]
    old = max(a.shape[1] for a in arrays)
    flat = []
    for a in arrays:
        if a.shape[:2] != (1, 1):  # one that belongs to all trials may stay so
            a = jnp.broadcast_to(a, (size, old, *a.shape[2:]))
        flat.append(a.reshape(-1, *a.shape[2:]))
    results = primitive.bind(*flat, **parameters)
    results = jax.tree.map(lambda r: r.reshape(size, old, *r.shape[1:]), results)
    return results, jax.tree.map(lambda _: 0, results)
