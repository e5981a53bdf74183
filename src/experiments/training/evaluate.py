"""Evaluating the best weights of an earlier run."""

from pathlib import Path
from typing import Any

from experiments.experiment import count_parameters
from experiments.training.checkpoints import Checkpoints, shaped
from experiments.training.program import Programs
from experiments.training.session import Session


def evaluate(session: Session, folder: Path) -> dict[str, Any]:
    """`val/*` and `test/*` of the best weights of the run in `folder`."""
    experiment, hparams = session.experiment, session.hparams
    state = experiment.abstract_state(hparams)
    weights = experiment.weights(state)
    sharding = session.replicated
    checkpoints = Checkpoints(folder)
    _, best, progress = checkpoints.restore(shaped(state, sharding), shaped(weights, sharding))
    checkpoints.close()
    programs = Programs(experiment, session.mesh, batch_size=session.batch_size, max_steps=1)
    shapes = session.evaluator("validation").shapes()
    program = programs.compile_eval(best, shapes, hparams)
    summary: dict[str, Any] = {"best": progress["best"]}
    for split, prefix in (("validation", "val"), ("test", "test")):
        values = session.evaluator(split)(program, best, hparams)
        summary |= {f"{prefix}/{name}": value for name, value in values.items()}
    return summary | {"parameters": count_parameters(best[0]), "checkpoint": str(folder)}
