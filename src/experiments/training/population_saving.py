"""The checkpoints of a population: of all lanes together, and of those that leave."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.core.experiment import State, Tree
from experiments.training import stored
from experiments.training.checkpoints import Checkpoints

Stack = tuple[State, tuple[Tree, Tree]]  # states and best weights, with an axis of rows in front


class Saving:
    """Where the lanes of a population are saved, and when.

    Args:
      folder: of the checkpoints of all; each stack, from one change of its lanes to the next, has
        its own below it.
      every: seconds between checkpoints; None: none is ever due.
    """

    def __init__(self, folder: Path, every: float | None):
        self.folder, self.every = folder, every
        self.checkpoints: Checkpoints | None = None  # of the stack as it is
        self.stacks = 0  # how many there were before
        self.last = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self.every is not None and time.perf_counter() - self.last > self.every

    def save(
        self, step: int, stack: Stack, folders: Sequence[Path], progress: list[dict[str, Any]]
    ) -> None:
        """Saves all lanes in the background; `folders` are those of the lanes, row by row.

        `stack` must not be donated meanwhile.
        """
        states, best = stack
        first = self.checkpoints is None
        if self.checkpoints is None:
            self.checkpoints = Checkpoints(self.folder / f"{self.stacks}")
        self.checkpoints.save(step, states, best, {"lanes": progress})
        if first:  # whole, before anything points to it
            self.checkpoints.wait()
            for row, folder in enumerate(folders):
                where = self.checkpoints.path.parent
                stored.point(folder, where, row, len(jax.tree.leaves(states)[0]))
        self.last = time.perf_counter()

    def save_apart(
        self, step: int, stack: Stack, lanes: Mapping[int, tuple[Path, dict[str, Any]]]
    ) -> None:
        """Saves lanes, by row, each in its own folder."""
        host = jax.device_get(stack)
        saving = []
        for row, (folder, progress) in lanes.items():
            state, best = jax.tree.map(lambda leaf, row=row: jax.device_put(leaf[row]), host)
            checkpoints = Checkpoints(folder)
            checkpoints.save(step, state, best, progress)
            saving.append(checkpoints)
        for checkpoints in saving:
            checkpoints.close()

    def new_stack(self) -> None:
        """From here on the rows are others."""
        if self.checkpoints is not None:
            self.close()
            self.checkpoints, self.stacks = None, self.stacks + 1

    def close(self) -> None:
        """Waits until everything is on disk."""
        if self.checkpoints is not None:
            self.checkpoints.close()
