"""The memory of devices: what states and programs take, and what is free."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.core.experiment import Tree
from experiments.errors import SMALLER_BATCH, UserError, out_of_memory, quantity
from experiments.training import runtime
from experiments.training.devices.layout import Layout
from experiments.viz.flops import size_of

if TYPE_CHECKING:
    from experiments.training.setup import Setup

log = logging.getLogger(__name__)

RESIDENT = 0.5  # of what is free on a device, the most that data may take which stay there
GROWS = 0.1  # of what a training takes: to make the batch smaller is no help where it is less


def is_apart() -> bool:
    """Return whether devices have memory of their own, as GPUs and TPUs have."""
    return jax.default_backend() != "cpu"


def bytes_per_device(tree: Tree) -> int:
    """Return the bytes that one device holds of arrays, or of shapes, that have their places."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def taken(states: int, weights: int, beside: int = 0) -> int:
    """Return the most bytes that a training ever takes of a device, its data apart.

    As it begins, the best weights and the first ones are there beside the states; from then on the
    best weights and what a program takes beside its arguments. All that asks whether a training
    fits goes by this.

    Args:
      states, weights: bytes of the states, and of the weights that an evaluation reads of them.
      beside: what a program takes beside its arguments; see `beside_arguments`.
    """
    return states + weights + max(weights, beside)


def about_beside(params: int, saved: int, layout: Layout) -> int:
    """Return about what a training step takes beside its arguments, before it is compiled.

    Args:
      params: bytes of the parameters, and so of their gradients.
      saved: bytes that the forward pass of a whole batch leaves for the backward pass, with the
        parameters that are read again; they make room for the gradients.
      layout: of the trial.
    """
    return _copies(layout) * params + max(saved - params, 0) // layout.mesh.shape["data"]


def _copies(layout: Layout) -> int:
    """Return how many arrays as large as the parameters a step makes, whatever its batch.

    The gradients, on several devices the sum of all of theirs, and gathered parameters.
    """
    return 1 + (layout.mesh.shape["data"] > 1) + layout.divided


def check_states(layout: Layout, states: Tree, weights: Tree) -> None:
    """Check that there is room for states and best weights, and once more for the first weights.

    Args:
      states, weights: the shapes of one trial's.

    Raises:
        UserError: there is not.
    """
    needed = taken(*(bytes_per_device(layout.stacked(tree)) for tree in (states, weights)))
    free = runtime.free_memory(layout.mesh.local_mesh.size)
    if needed > free:
        trials = f"{layout.rows} trials" if layout.rows > 1 else "the model"
        raise UserError(
            f"out of memory: the state and the best weights of {trials} take "
            f"{quantity(needed, 'B')}, and {said_free(free)}\n{_advice_for_state(layout)}"
        )


def check_program(program: jax.stages.Compiled, setup: "Setup", layout: Layout, what: str) -> None:
    """Check that there is room for what a program takes beside its arguments.

    Args:
      what: `a step` or what else it computes.

    Raises:
        UserError: there is not.
    """
    free = runtime.free_memory(layout.mesh.local_mesh.size)
    needed = beside_arguments(program)
    if needed > free:
        raise UserError(
            f"out of memory: {what} takes {quantity(needed, 'B')}, and {said_free(free)}\n"
            f"{_advice_for(setup, layout, needed)}"
        )


@contextlib.contextmanager
def explained(setup: "Setup", trials: int) -> Iterator[None]:
    """Say of memory that a training of so many trials lacks what would take less.

    Raises:
        UserError: there was too little.
    """
    try:
        yield
    except Exception as error:
        if (said := out_of_memory(error)) is None:
            raise
        layout, beside = setup.layout(trials), 0
        for compiled in list(setup.compiled_for.values()):
            with contextlib.suppress(UserError, MemoryError, jax.errors.JaxRuntimeError):
                # which a program that could not be made has raised before
                beside = max(beside, beside_arguments(compiled.train))
        if not beside:
            raise
        advised = _advice_for(setup, layout, beside)
        raise UserError(f"{said.splitlines()[0]}\n{advised}") from error


def advice(trainer: Mapping[str, Any], layout: Layout, held: int, params: int, beside: int) -> str:
    """Return what makes a training take less memory, of what is not done yet.

    Args:
      trainer: of the config.
      layout: of the trials.
      held: bytes of the states and best weights on a device.
      params: bytes of the parameters of all trials there, which their gradients take too.
      beside: bytes that a step takes beside what is held.
    """
    if beside - _copies(layout) * params < GROWS * (held + beside):
        return _advice_for_state(layout)
    more = [SMALLER_BATCH, "data.eval_batch_size"]
    more += [] if trainer["remat"] else ["trainer.remat=true in a deep network"]
    more += [] if trainer["precision"] == "bf16" else ["trainer.precision=bf16"]
    return f"less is taken by {', '.join(more)}"


def _advice_for(setup: "Setup", layout: Layout, beside: int) -> str:
    states, weights = setup.shapes, setup.experiment.weights(setup.shapes)
    trees = (states, weights), states.params
    held, params = (bytes_per_device(layout.stacked(tree)) for tree in trees)
    return advice(setup.config["trainer"], layout, held, params, beside)


def _advice_for_state(layout: Layout) -> str:
    several = not layout.divided and jax.local_device_count() > 1
    more = ["a smaller model", "optim=sgd"]
    more += ["population.most=..."] if layout.rows > 1 else []
    more += ["trainer.sharding=fsdp"] if several else []
    return f"less is taken by {', '.join(more)}"


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
    return size_of(dict(arrays)) <= RESIDENT * runtime.free_memory(1)


def said_free(size: int) -> str:
    """Return what is free on a device, in words."""
    where = jax.local_devices()[0].device_kind if is_apart() else "this machine"
    return f"{quantity(size, 'B')} of {where} are free"
