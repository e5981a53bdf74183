"""Checkpoints by Orbax: everything that the rest of a training follows from.

A checkpoint holds a stack of trials, that is one or more: their states, their best weights so far,
and of each what the host knows of it. A trial by itself has its checkpoints in its own folder.
Those of trials side by side are in a folder of their own, to which a small file in the folder of
each trial points; a trial that left early, or went on alone, has newer ones in its own folder.

Orbax writes in the background and renames what is whole: nothing half-written is ever visible.
"""

import contextlib
import copy
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.core.experiment import State, Tree
from experiments.core.params import copied
from experiments.errors import UserError
from experiments.machine import fault_of, write_whole
from experiments.training.distributed import fetch
from experiments.training.run_folder import CHECKPOINTS, saved_steps

log = logging.getLogger(__name__)

POINTER = "population.json"
LARGE = 64 * 2**20  # bytes of states that are not copied
OVERHEAD = 64 * 1024  # bytes of a checkpoint besides its arrays: 60 kB for an MLP under Adam
Stack = tuple[State, tuple[Tree, Tree]]  # states and best weights, with an axis of trials in front
Progress = dict[str, Any]


class Saved(NamedTuple):
    """One trial of a checkpoint, as host arrays."""

    state: State
    best: tuple[Tree, Tree]
    progress: Progress

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)


class Checkpoints:
    """The checkpoints in `folder`: the newest two, and those of certain steps.

    Those whose step is a multiple of `keep_every` (None: of nothing) stay for good.
    """

    def __init__(self, folder: Path, keep_every: int | None = None):
        import orbax.checkpoint as ocp  # takes seconds to import, and only trainings that save do

        self.path = folder / CHECKPOINTS
        self._ocp = ocp
        policies = ocp.checkpoint_managers
        policy = [policies.LatestN(2), *([policies.EveryNSteps(keep_every)] if keep_every else [])]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(policy),
            cleanup_tmp_directories=True,
            # else threads wait minutes for a folder that cannot be made
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        # compressed, floats hardly shrink, but take four times the processor time and a copy
        arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
        handlers = {"state": arrays, "best": arrays, "progress": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.path.absolute(), options=options, item_handlers=handlers
        )

    def save(self, step: int, stack: Stack, progress: Sequence[Progress]) -> None:
        """Save in the background, unless there is a checkpoint of this step already.

        `stack` must not be donated meanwhile.

        Raises:
            UserError: this or an earlier checkpoint could not be written.
        """
        if step in self._manager.all_steps():
            return
        self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(stack)) + OVERHEAD)
        args, (states, best) = self._ocp.args, stack
        trials = copy.deepcopy(list(progress))  # the training goes on changing its own
        items = args.Composite(
            state=args.PyTreeSave(states),
            best=args.PyTreeSave(best),
            progress=args.JsonSave({"trials": trials, "checksums": checksums(stack, trials)}),
        )
        with self._explained():
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Wait until everything is on disk; raises like `save`."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk and let go of the folder; raises like `save`."""
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.close()

    def discard_after(self, step: int) -> None:
        """Remove checkpoints after `step`, which could not be read and stand in the way."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def restore(self, stack: Stack | None, step: int | None = None) -> tuple[Any, Any, list]:
        """Return (states, best weights, progress) of a step, or of the newest that can be read.

        A damaged checkpoint is passed over with a warning for the one before.

        Args:
          stack: its structure, of any shapes; None leaves it as nested dicts and lists.

        Raises:
            UserError: there is none, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        if not steps:
            raise UserError(f"there is no checkpoint in {self.path}")
        for step in steps:
            try:
                return self._restore(stack, step)
            except Exception as error:
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                log.warning("checkpoint %s cannot be read: %s", self.path / str(step), reason)
        raise UserError(
            f"no checkpoint in {self.path} can be read: damaged, or of another model; "
            f"HYDRA_FULL_ERROR=1 shows the details"
        )

    def _restore(self, stack: Stack | None, step: int) -> tuple[Any, Any, list]:
        args = self._ocp.args
        metadata = self._manager.item_metadata(step)
        wanted = {}
        for name, part in zip(("state", "best"), stack or (None, None), strict=True):
            tree = metadata[name].tree if part is None else part
            as_numpy = jax.tree.map(lambda _: self._ocp.RestoreArgs(restore_type=np.ndarray), tree)
            wanted[name] = args.PyTreeRestore(part, restore_args=as_numpy)
        found = self._manager.restore(
            step, args=args.Composite(**wanted, progress=args.JsonRestore())
        )
        expected = found.progress.get("checksums")  # of version 0.1 there are none
        known = found.progress.get("trials")
        if expected not in (None, checksums((found.state, found.best), known)):
            raise ValueError("it is not what was saved: the files are damaged")
        return _with_trials(found.state, found.best, found.progress)

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.path).free
        if size > free:
            reason = f"No space left on device (it takes {size:,} bytes, {free:,} are free)"
            raise self._unsaved(reason)

    def _unsaved(self, reason: str) -> UserError:
        return UserError(
            f"cannot save a checkpoint in {self.path}: {reason}. "
            f"Those before it are still there: make room, then resume the run"
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            for unfinished in self.path.glob("*.orbax-checkpoint-tmp"):  # room for the summary
                shutil.rmtree(unfinished, ignore_errors=True)
            last_line = str(error).strip().splitlines()[-1][:200]
            raise self._unsaved(fault_of(error) or last_line) from error


class SharedCheckpoints:
    """The checkpoints of a training: in the folder of its one trial, or in one for all of them.

    Args:
      folder: of the checkpoints of several trials; each stack, from one change of its trials to the
        next, has its own below it.
      keep_every: see `Checkpoints`; of several trials, each has those in its own folder.
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

        On a CPU large states are waited for, which spares the memory of a copy.

        Args:
          folders: those of the trials, in order.
          last: whether no step will follow that overwrites the states.
        """
        states, best = stack
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
        wait = size > LARGE and jax.default_backend() == "cpu"
        stack = stack if last or wait else (copied(states), best)
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
        if others and self.keep_every and step % self.keep_every == 0:
            self.save_apart(step, stack, folders, progress)

    def save_apart(
        self, step: int, stack: Stack, folders: Sequence[Path], progress: Sequence[Progress]
    ) -> None:
        """Save trials, the first rows of a stack, each in its own folder."""
        host = jax.device_get(stack)
        saving = []
        for row, (folder, own) in enumerate(zip(folders, progress, strict=True)):
            checkpoints = Checkpoints(folder, self.keep_every)
            alone = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], host)
            checkpoints.save(step, alone, [own])
            saving.append(checkpoints)
        for checkpoints in saving:
            checkpoints.close()

    def close(self) -> None:
        """Wait until everything is on disk; what is saved next are other trials."""
        if self._open is not None:
            self._open.close()
            self._open, self._stacks = None, self._stacks + 1


def checksums(stack: Any, trials: Any) -> list[int]:
    """Return CRC-32s: of what is known of the trials, and of every array, whatever their order."""
    arrays = (np.ascontiguousarray(fetch(leaf)) for leaf in jax.tree.leaves(stack))
    known = json.dumps(trials, sort_keys=True).encode()
    return [zlib.crc32(known), *sorted(zlib.crc32(array.data) for array in arrays)]


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


def _with_trials(states: Any, best: Any, progress: Any) -> tuple[Any, Any, list]:
    """Return a checkpoint with an axis of trials, which version 0.1 left out for one trial."""
    if "trials" in progress or "lanes" in progress:
        return states, best, progress.get("trials") or progress["lanes"]
    states, best = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (states, best))
    return states, best, [progress]
