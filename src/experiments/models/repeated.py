"""Equal blocks in a row, traced and compiled once however many there are."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.layers import KEPT

MANY = 6  # blocks in a row from which on it is worth it

# A loop copies what it keeps for the backward pass. Convolutions and statistics are worth that;
# what lies between them is computed again sooner than it is copied there and back.
ONLY_KEPT = jax.checkpoint_policies.save_only_these_names(KEPT)


class Repeated(nnx.Module):
    """`depth` blocks of one kind and shape, each reading what the one before it gives.

    Every variable of `block` holds those of all blocks, [depth, ...], and the blocks run as one
    `lax.scan`: a program and an optimizer as small as those of one block. A step takes as long as
    that of blocks written out (ResNet-152, batch of 8: 1.4 and 1.5 s).

    Args:
      make: a new block, its weights drawn by the `kernel_init` that it is handed.
      depth: number of blocks.
      kernel_init: draws the weights of one block.
      rngs: what it draws them from.
    """

    inside = "block"  # the attribute that stands for all of them

    def __init__(
        self,
        make: Callable[..., nnx.Module],
        depth: int,
        *,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        def every(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.stack([kernel_init(rngs.params(), shape, dtype) for _ in range(depth)])

        self.depth = depth
        self.block = make(kernel_init=every)
        for _, variable in nnx.iter_graph(self.block):
            # what is not drawn is a constant, and all blocks begin with the same
            if isinstance(variable, nnx.Variable) and isinstance(variable[...], np.ndarray):
                constant = variable[...]
                variable.set_value(np.broadcast_to(constant, (depth, *constant.shape)))

    def __call__(self, x: jax.Array) -> jax.Array:
        graph, variables = nnx.split(self.block)

        @functools.partial(jax.checkpoint, policy=ONLY_KEPT, prevent_cse=False)
        def body(x: jax.Array, variables: nnx.State) -> tuple[jax.Array, nnx.State]:
            block = nnx.merge(graph, variables)
            y = block(x)
            return y, nnx.state(block, nnx.BatchStat)

        x, statistics = jax.lax.scan(body, x, variables)
        nnx.update(self.block, statistics)
        return x

    def widths_of(self, part: str) -> None:
        """Every part of a block has as many channels in all of them; see `DenseBlock`."""
