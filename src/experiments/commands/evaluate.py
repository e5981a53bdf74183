"""Evaluates the weights of a run on its validation and test splits."""

from pathlib import Path
from typing import Any

from experiments.core.params import count_parameters
from experiments.tracking.jsonl import write_json
from experiments.tracking.terminal import Terminal, number
from experiments.training.program import Programs
from experiments.training.restored import saved_weights
from experiments.training.session import open_session

NEEDS_RUN = True


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Prints `val/*` and `test/*` and writes them to `summary.json`."""
    Terminal().status("reading data")
    session = open_session(config)
    weights, progress = saved_weights(session, source)
    programs = Programs(
        session.experiment, session.mesh, batch_size=session.batch_size, max_steps=1
    )
    shapes = session.evaluator("validation").shapes()
    program = programs.compile_eval(weights, shapes, session.hparams)
    summary: dict[str, Any] = {"best": progress["best"]}
    for split, prefix in (("validation", "val"), ("test", "test")):
        values = session.evaluator(split)(program, weights, session.hparams)
        summary |= {f"{prefix}/{name}": value for name, value in values.items()}
        print("   ".join(f"{prefix}/{name} {number(value)}" for name, value in values.items()))
    summary |= {"parameters": count_parameters(weights[0]), "checkpoint": str(source)}
    write_json(directory / "summary.json", summary)
