"""The weights of an earlier run."""

from pathlib import Path
from typing import Any

import jax

from experiments.core.experiment import Tree
from experiments.training import stored
from experiments.training.checkpoints import Checkpoints, shaped
from experiments.training.saved import split_source
from experiments.training.session import Session


def saved_weights(session: Session, source: Path) -> tuple[tuple[Tree, Tree], dict[str, Any]]:
    """(params, model_state) that `checkpoint=` names, and the progress of the run then.

    A run folder stands for the best epoch, `<run folder>/checkpoints/<step>` for that very step.
    """
    folder, step = split_source(source)
    state = session.experiment.abstract_state(session.hparams)
    weights = session.experiment.weights(state)
    sharding = session.replicated
    if step is None and stored.is_lane(folder):
        _, best, progress = stored.load([folder], state, weights)[0]
        return jax.device_put(best, sharding), progress
    checkpoints = Checkpoints(folder)
    state, best, progress = checkpoints.restore(
        shaped(state, sharding), shaped(weights, sharding), step
    )
    checkpoints.close()
    return (best if step is None else session.experiment.weights(state)), progress
