"""Checkpoints of a run by Orbax: everything that the rest of the run follows from.

A checkpoint holds the training state, the best weights so far and the host's own progress (what
the log has not written yet, which epoch was best). Orbax writes it in the background under another
name and renames it when it is whole, so nothing half-written is ever visible.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.errors import UserError
from experiments.experiment import State, Tree

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
ITEMS = ("state", "best", "progress")


class Checkpoints:
    """The checkpoints of the run in `directory`: the newest `keep` of them."""

    def __init__(self, directory: Path, keep: int = 2):
        import orbax.checkpoint as ocp  # takes seconds to import, and only runs that save need it

        self.path = directory / FOLDER
        self._args = ocp.args
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            self.path.absolute(), options=options, item_names=ITEMS
        )

    def save(self, step: int, state: State, best: tuple[Tree, Tree], progress: dict) -> None:
        """Saves in the background; `state` and `best` must not be donated meanwhile.

        Raises:
            UserError: this or an earlier checkpoint could not be written.
        """
        args = self._args
        if step in self._manager.all_steps():
            return
        items = args.Composite(
            state=args.StandardSave(state),
            best=args.StandardSave(best),
            progress=args.JsonSave(progress),
        )
        with self._told():
            self._manager.save(step, args=items)

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

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = str(error).strip().splitlines()[-1][:200]
            if "No space left" in str(error):
                reason = "no space left on device"
            raise UserError(
                f"cannot save a checkpoint in {self.path}: {reason}. "
                f"The ones before are kept: make room, then resume the run"
            ) from error

    def restore(self, state: State, best: tuple[Tree, Tree]) -> tuple[State, Any, dict]:
        """(state, best weights, progress) of the newest checkpoint that can be read.

        `state` and `best` give shapes and shardings. A damaged checkpoint is passed over with a
        warning for the one before.

        Raises:
            UserError: there is none, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise UserError(f"there is no checkpoint in {self.path}")
        args = self._args
        wanted = args.Composite(
            state=args.StandardRestore(state),
            best=args.StandardRestore(best),
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
