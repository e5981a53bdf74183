"""Where the checkpoint of each trial is, by itself or side by side with others.

A trial by itself has its checkpoints in its own folder. Those of trials side by side are in a
folder of their own, to which a small file in the folder of each trial points; a trial that left
early, or went on alone, has newer ones in its own folder.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.core.experiment import Tree
from experiments.core.params import copied
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.training.devices.memory import is_apart
from experiments.training.run_folder import saved_steps
from experiments.training.saving.checkpoints import Checkpoints, Progress, Saved, Stack, best_steps

POINTER = "population.json"
LARGE = 64 * 2**20  # bytes of states that are not copied


class SharedCheckpoints:
    """The checkpoints of a training: in the folder of its one trial, or in one for all of them.

    Args:
      folder: of the checkpoints of several trials; each stack, from one change of its trials to the
        next, has its own below it.
      keep_every: see `Checkpoints`; of several trials, each has those that stay in its own folder.
    """

    def __init__(self, folder: Path, keep_every: int | None):
        self.folder, self.keep_every = folder, keep_every
        self._open: Checkpoints | None = None  # of the stack as it is
        self._stacks = 0  # how many there were before

    def save(
        self,
        step: int,
        stack: Stack,
        folders: Sequence[Path],
        progress: Sequence[Progress],
        *,
        last: bool = False,
    ) -> None:
        """Save all trials in the background.

        What is saved must not be overwritten meanwhile. Devices with memory of their own keep no
        copy: the host fetches one. On a CPU, and where each of several processes has a part of the
        states, they are copied, or if they are large waited for.

        Args:
          folders: those of the trials, in order.
          last: whether no step will follow that overwrites the states.
        """
        states, best = stack
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
        fetched = is_apart() and jax.process_count() == 1
        wait = size > LARGE and not fetched
        if fetched:
            stack = jax.device_get(stack)
        elif not (last or wait):
            stack = copied(states), best
        (alone, *others), first = folders, self._open is None
        where = self.folder / f"{self._stacks}" if others else alone
        if self._open is None:
            self._open = Checkpoints(where, None if others else self.keep_every)
        self._open.save(step, stack, progress)
        if others and first:  # whole, before anything points to it
            self._open.wait()
            for row, folder in enumerate(folders):
                _point(folder, where, row)
        if wait and not last:
            self._open.wait()
        if others:
            stays = self.keep_every is not None and step % self.keep_every == 0
            apart = [row for row, own in enumerate(progress) if stays or step in best_steps(own)]
            self.save_apart(step, stack, apart, folders, progress)

    def save_apart(
        self,
        step: int,
        stack: Stack,
        rows: Sequence[int],
        folders: Sequence[Path],
        progress: Sequence[Progress],
    ) -> None:
        """Save the trials in these rows of a stack, each in its own folder."""
        host, saving = jax.device_get(stack) if rows else stack, []
        for row in rows:
            checkpoints = Checkpoints(folders[row], self.keep_every)
            alone = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], host)
            checkpoints.save(step, alone, [progress[row]])
            saving.append(checkpoints)
        for checkpoints in saving:
            checkpoints.close()

    def close(self) -> None:
        """Wait until everything is on disk; what is saved next are other trials."""
        if self._open is not None:
            self._open.close()
            self._open, self._stacks = None, self._stacks + 1


def saved_step(folder: Path) -> int:
    """Return the step of a trial's newest checkpoint, its own or a shared one; 0 without any."""
    return max([0, *saved_steps(folder), *saved_steps(_stack_of(folder)[0])])


def load(folders: Sequence[Path], shapes: Sequence[Stack], step: int | None = None) -> list[Saved]:
    """Return what was saved of trials: at a step, or the newest that can be read.

    Args:
      folders: of the trials.
      shapes: of each trial's (state, best weights).

    Raises:
        UserError: of one of them there is nothing that can be read.
    """
    stacks: dict[Path, tuple[Any, Any, list]] = {}  # of several trials each is read once
    found = []
    for folder, wanted in zip(folders, shapes, strict=True):
        where, row = _newest(folder) if step is None else (folder, 0)
        if where not in stacks:
            stacks[where] = _read(where, wanted, step)
        states, bests, progress = stacks[where]
        mine = jax.tree.map(lambda leaf, row=row: leaf[row], (states, bests))
        _check_shapes(folder, mine, wanted)
        found.append(Saved(mine[0], mine[1], progress[row]))
    return found


def load_weights(folder: Path, step: int | None = None) -> tuple[Tree, Tree]:
    """Return (params, model_state) of a trial's best epoch, or of a step, as nested dicts."""
    where, row = _newest(folder) if step is None else (folder, 0)
    states, best, _ = _read(where, None, step)
    if step is not None:
        best = states["ema"] or (states["params"], states["model_state"])
    params, model_state = best
    return jax.tree.map(lambda leaf: leaf[row], (params, model_state))


def discard_after(folder: Path, step: int) -> None:
    """Remove a trial's own checkpoints after a step."""
    if any(later > step for later in saved_steps(folder)):
        checkpoints = Checkpoints(folder)
        checkpoints.discard_after(step)
        checkpoints.close()


def _read(folder: Path, shapes: Stack | None, step: int | None) -> tuple[Any, Any, list]:
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(shapes, step)
    checkpoints.close()
    return found


def _point(folder: Path, where: Path, row: int) -> None:
    """Write into a trial's folder where its checkpoint is."""
    pointer = {"folder": os.path.relpath(where, folder), "row": row}
    write_whole(folder / POINTER, json.dumps(pointer))


def _stack_of(folder: Path) -> tuple[Path, int]:
    """Return the folder that a trial's points to, and the trial's place in its stacks."""
    if not (folder / POINTER).is_file():
        return folder, 0
    pointer = json.loads((folder / POINTER).read_text())
    if not (where := (folder / pointer["folder"]).resolve()).is_dir():
        raise UserError(f"{folder} shared its checkpoints with others: {where} is gone")
    return where, pointer["row"]


def _newest(folder: Path) -> tuple[Path, int]:
    """Return where the newest checkpoint of a trial is: its own folder or a shared one."""
    shared, row = _stack_of(folder)
    newer = max(saved_steps(shared), default=0) > max(saved_steps(folder), default=0)
    return (shared, row) if newer else (folder, 0)


def _check_shapes(folder: Path, found: Any, wanted: Any) -> None:
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if np.shape(ours) != theirs.shape:
            raise UserError(
                f"the checkpoint in {folder} is of another model: it holds an array "
                f"{np.shape(ours)} where this model has {theirs.shape}"
            )
