"""Checkpoints of a population: one for all lanes, to which the folder of each points.

A lane that left early, or went on alone, has newer checkpoints in its own folder.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.core.experiment import State, Tree
from experiments.training.checkpoints import Checkpoints
from experiments.training.saved import saved_steps

POINTER = "population.json"

Saved = tuple[State, tuple[Tree, Tree], dict[str, Any]]  # state, best weights, progress


def point(directory: Path, folder: Path, row: int, rows: int) -> None:
    """Writes into the folder of a lane where its checkpoint is."""
    where = {"folder": os.path.relpath(folder, directory), "row": row, "rows": rows}
    unfinished = directory / f"{POINTER}.tmp"
    unfinished.write_text(json.dumps(where))
    unfinished.replace(directory / POINTER)


def is_lane(directory: Path) -> bool:
    """Whether the newest that was saved of this run is in its population's checkpoint."""
    return _in_population(directory) > _newest(directory)


def saved_step(directory: Path) -> int:
    """The step of a run's newest checkpoint, its own or its population's; 0 if there is none."""
    return max(_newest(directory), _in_population(directory))


def _in_population(directory: Path) -> int:
    if not (directory / POINTER).is_file():
        return 0
    return _newest(directory / json.loads((directory / POINTER).read_text())["folder"])


def _newest(directory: Path) -> int:
    return max(saved_steps(directory), default=0)


def load(directories: Sequence[Path], state: State, best: tuple[Tree, Tree]) -> list[Saved]:
    """What was saved of lanes, as host arrays; `state` and `best` give the shapes of one lane."""
    populations: dict[Path, Saved] = {}
    found = []
    for directory in directories:
        if not is_lane(directory):
            found.append(_read(directory, state, best))
            continue
        pointer = json.loads((directory / POINTER).read_text())
        folder, row, rows = directory / pointer["folder"], pointer["row"], pointer["rows"]
        key = folder.resolve()
        if key not in populations:
            populations[key] = _read(folder, *stacked((state, best), rows))
        states, bests, progress = populations[key]
        mine = jax.tree.map(lambda leaf, row=row: leaf[row], (states, bests))
        found.append((*mine, progress["lanes"][row]))
    return found


def stacked(tree: Tree, rows: int) -> Tree:
    """Shapes with an axis of lanes in front."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *np.shape(leaf)), leaf.dtype), tree
    )


def _read(folder: Path, state: State, best: tuple[Tree, Tree]) -> Saved:
    checkpoints = Checkpoints(folder)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), (state, best)
    )
    found_state, found_best, progress = checkpoints.restore(*shapes)
    checkpoints.close()
    return (*jax.device_get((found_state, found_best)), progress)
