"""Where a NaN comes from: the step that made it is played again, operation by operation."""

import traceback
from typing import Any

import jax
import numpy as np

from experiments.core.experiment import State
from experiments.training.compiled import Compiled
from experiments.training.distributed import fetch
from experiments.training.session import Session


def blame(session: Session, compiled: Compiled, state: State, step: int) -> str | None:
    """The operation that first gives a NaN or an infinity in `step`, and the line it stands on.

    `state` is the one before that step, as a run that has diverged keeps it. None if the step
    played by itself is finite.
    """
    experiment = session.experiment
    epoch, done = divmod(step, experiment.steps_per_epoch)
    window = next(iter(compiled.feed.windows(epoch, done)))
    rows = slice(window.first * session.batch_size, (window.first + 1) * session.batch_size)
    index = np.asarray(window.order)[rows]
    batch = {name: fetch(array)[index] for name, array in window.arrays.items()}
    state = jax.device_get(state)._replace(step=np.int32(step), diverged_at=np.int32(-1))
    for option in ("jax_debug_nans", "jax_debug_infs"):
        found = _play(experiment.train_step, option, state, batch, compiled.hparams, session.key)
        if found:
            return found
    return None


def _play(function: Any, option: str, *arguments: Any) -> str | None:
    jax.config.update(option, True)
    try:
        jax.jit(function)(*arguments)
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "experiments" in f.filename and f.name != "_play"]
        where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
        return str(error).strip().splitlines()[0] + where
    finally:
        jax.config.update(option, False)
    return None
