"""Checkpoints by Orbax: everything that the rest of a training follows from.

A checkpoint holds a stack of trials, that is one or more: their states, their best weights so far,
and of each what the host knows of it.

Orbax writes in the background and renames what is whole: nothing half-written is ever visible.
"""

import contextlib
import copy
import json
import logging
import shutil
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.core.experiment import State, Tree
from experiments.errors import UserError
from experiments.machine import fault_of
from experiments.training.distributed import fetch
from experiments.training.run_folder import CHECKPOINTS

log = logging.getLogger(__name__)

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

    Those whose step is a multiple of `keep_every` (None: of nothing) stay for good, and those of a
    trial's best evaluations as long as they are that.
    """

    def __init__(self, folder: Path, keep_every: int | None = None):
        import orbax.checkpoint as ocp  # takes seconds to import, and only trainings that save do

        self.path = folder / CHECKPOINTS
        self._ocp = ocp
        policies, self._best = ocp.checkpoint_managers, Some()
        policy = [policies.LatestN(2), self._best]
        policy += [policies.EveryNSteps(keep_every)] if keep_every else []
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
        self._best.steps = best_steps(trials[0]) if len(trials) == 1 else ()
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


class Some:
    """Orbax's policy of keeping the checkpoints of some steps, which may change."""

    steps: Collection[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return whether each checkpoint stays."""
        return [one.step in self.steps for one in checkpoints]


def best_steps(progress: Progress) -> set[int]:
    """Return the steps of a trial's best evaluations, whose checkpoints stay."""
    return {one["step"] for one in progress.get("kept", [])}


def checksums(stack: Any, trials: Any) -> list[int]:
    """Return CRC-32s: of what is known of the trials, and of every array, whatever their order."""
    arrays = (np.ascontiguousarray(fetch(leaf)) for leaf in jax.tree.leaves(stack))
    known = json.dumps(trials, sort_keys=True).encode()
    return [zlib.crc32(known), *sorted(zlib.crc32(array.data) for array in arrays)]


def _with_trials(states: Any, best: Any, progress: Any) -> tuple[Any, Any, list]:
    """Return a checkpoint with an axis of trials, which version 0.1 left out for one trial."""
    if "trials" in progress or "lanes" in progress:
        return states, best, progress.get("trials") or progress["lanes"]
    states, best = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (states, best))
    return states, best, [progress]
