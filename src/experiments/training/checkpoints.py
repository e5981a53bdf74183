"""Checkpoints of a run by Orbax: everything that the rest of the run follows from.

A checkpoint holds the training state, the best weights so far and the host's own progress (what
the log has not written yet, which epoch was best). Orbax writes it in the background under another
name and renames it when it is whole, so nothing half-written is ever visible.
"""

import contextlib
import copy
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.core.experiment import State, Tree
from experiments.errors import UserError
from experiments.training.saved import CHECKPOINTS

log = logging.getLogger(__name__)

FULL = ("No space left on device", "Disk quota exceeded")
OVERHEAD = 64 * 1024  # bytes of a checkpoint besides its arrays: 60 kB for an MLP under Adam


class Checkpoints:
    """The checkpoints of the run in `directory`: the newest two, and those of certain steps.

    Those whose step is a multiple of `keep_every` (None: of nothing) are kept for good.
    """

    def __init__(self, directory: Path, keep_every: int | None = None):
        import orbax.checkpoint as ocp  # takes seconds to import, and only runs that save need it

        self.path = directory / CHECKPOINTS
        self._args = ocp.args
        self._to_restore = ocp.checkpoint_utils.construct_restore_args
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(2)]
        if keep_every is not None:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )
        # compressed, floats hardly shrink, but take four times the processor time and a copy
        arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._manager = ocp.CheckpointManager(
            self.path.absolute(),
            options=options,
            item_handlers={
                "state": arrays,
                "best": arrays,
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of this step, or one is being written."""
        return step in self._manager.all_steps()

    def save(self, step: int, state: State, best: tuple[Tree, Tree], progress: dict) -> None:
        """Saves in the background, unless there is one of this step already.

        `state` and `best` must not be donated meanwhile.

        Raises:
            UserError: this or an earlier checkpoint could not be written.
        """
        args = self._args
        if self.has(step):
            return
        self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves((state, best))) + OVERHEAD)
        items = args.Composite(
            state=args.PyTreeSave(state),
            best=args.PyTreeSave(best),
            progress=args.JsonSave(copy.deepcopy(progress)),  # the run goes on changing its own
        )
        with self._told():
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Waits until everything is on disk; raises like `save`."""
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk and lets go of the folder; raises like `save`."""
        with self._told():
            self._manager.wait_until_finished()
            self._manager.close()

    def discard_after(self, step: int) -> None:
        """Removes checkpoints after `step`: they could not be read and stand in the way."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.path).free
        if size > free:
            reason = f"No space left on device (it takes {size:,} bytes, {free:,} are free)"
            raise self._unsaved(reason)

    def _unsaved(self, reason: str) -> UserError:
        return UserError(
            f"cannot save a checkpoint in {self.path}: {reason}. "
            f"The ones before are kept: make room, then resume the run"
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            for unfinished in self.path.glob("*.orbax-checkpoint-tmp"):  # room for the summary
                shutil.rmtree(unfinished, ignore_errors=True)
            last_line = str(error).strip().splitlines()[-1][:200]
            raise self._unsaved(next((r for r in FULL if r in str(error)), last_line)) from error

    def restore(
        self, state: State, best: tuple[Tree, Tree], step: int | None = None
    ) -> tuple[State, Any, dict]:
        """(state, best weights, progress) of a step, or of the newest checkpoint that can be read.

        `state` and `best` give shapes and shardings. A damaged checkpoint is passed over with a
        warning for the one before.

        Raises:
            UserError: there is none, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        if not steps:
            raise UserError(f"there is no checkpoint in {self.path}")
        args = self._args
        wanted = args.Composite(
            state=args.PyTreeRestore(state, restore_args=self._to_restore(state)),
            best=args.PyTreeRestore(best, restore_args=self._to_restore(best)),
            progress=args.JsonRestore(),
        )
        for step in steps:
            try:
                found = self._manager.restore(step, args=wanted)
                return found.state, found.best, found.progress
            except Exception as error:
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                log.warning("checkpoint %s cannot be read: %s", self.path / str(step), reason)
        raise UserError(
            f"no checkpoint in {self.path} can be read: damaged, or of another model; "
            f"HYDRA_FULL_ERROR=1 shows the details"
        )


def shaped(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Shapes, dtypes and sharding of a pytree, to restore into."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
