"""The memory of devices: what states and programs take, and what is free."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.core.experiment import Tree
from experiments.errors import LESS_MEMORY, SMALLER_STATE, UserError
from experiments.tracking.terminal import quantity
from experiments.training import runtime
from experiments.training.devices.layout import Layout
from experiments.viz.flops import size_in_bytes

log = logging.getLogger(__name__)

RESIDENT = 0.5  # of what is free on a device, the most that data may take which stay there


def is_apart() -> bool:
    """Return whether devices have memory of their own, as GPUs and TPUs have."""
    return jax.default_backend() != "cpu"


def bytes_per_device(tree: Tree) -> int:
    """Return the bytes that one device holds of arrays, or of shapes, that have their places."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_states(layout: Layout, states: Tree, weights: Tree) -> None:
    """Check that there is room for states and best weights, and once more for the first weights.

    Args:
      states, weights: the shapes of one trial's.

    Raises:
        UserError: there is not.
    """
    once, again = (bytes_per_device(layout.stacked(tree)) for tree in (states, weights))
    needed, free = once + 2 * again, runtime.free_memory(layout.mesh.size)
    if needed > free:
        trials = f"{layout.rows} trials" if layout.rows > 1 else "the model"
        divided = (
            "" if layout.divided else ", trainer.sharding=fsdp where there are several devices"
        )
        raise UserError(
            f"out of memory: the state and the best weights of {trials} take "
            f"{quantity(needed, 'B')}, and {_free(free)}\n{SMALLER_STATE}"
            f"{', population.most=...' if layout.rows > 1 else ''}{divided}"
        )


def check_program(program: jax.stages.Compiled, layout: Layout, what: str) -> None:
    """Check that there is room for what a program takes beside its arguments.

    Args:
      what: `a step` or what else it computes.

    Raises:
        UserError: there is not.
    """
    needed, free = beside_arguments(program), runtime.free_memory(layout.mesh.size)
    if needed > free:
        raise UserError(
            f"out of memory: {what} takes {quantity(needed, 'B')}, and {_free(free)}\n{LESS_MEMORY}"
        )


def log_memory(program: jax.stages.Compiled, held: Tree) -> None:
    """Say what a device holds of a stack, and what its training program takes beside that."""
    sizes = bytes_per_device(held), beside_arguments(program)
    said = "a device holds %s of states and best weights; a step takes %s beside them"
    log.info(said, *(quantity(size, "B") for size in sizes))


def beside_arguments(program: jax.stages.Compiled) -> int:
    """Return the bytes that a program takes on a device beside its arguments; 0 if unknown."""
    found: Any = program.memory_analysis()
    if found is None:
        return 0
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + max(new, 0)


def may_stay(arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether each device has room for arrays of the host, and for a training beside them.

    Where devices share the memory of the host that is no question: what is there fits.
    """
    if not is_apart():
        return True
    return sum(map(size_in_bytes, arrays.values())) <= RESIDENT * runtime.free_memory(1)


def _free(size: int) -> str:
    where = jax.local_devices()[0].device_kind if is_apart() else "this machine"
    return f"{quantity(size, 'B')} of {where} are free"
