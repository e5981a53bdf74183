"""Draws the figures of an earlier run's best weights."""

from pathlib import Path
from typing import Any

from experiments.tracking.terminal import Terminal, number
from experiments.tracking.tracker import Trackers
from experiments.training.program import Programs
from experiments.training.report import Album
from experiments.training.restored import saved_weights
from experiments.training.saved import split_source
from experiments.training.session import open_session

NEEDS_RUN = True


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Writes them to `figures/` of the run and says which."""
    terminal = Terminal()
    terminal.status("reading data")
    session = open_session(config)
    weights, progress = saved_weights(session, source)
    programs = Programs(
        session.experiment, session.mesh, batch_size=session.batch_size, max_steps=1
    )
    terminal.status("drawing")
    test = session.evaluator("test")
    program = programs.compile_eval(weights, test.shapes(), session.hparams)
    _, predictions = test.predict(program, weights, session.hparams)
    folder, _ = split_source(source)
    album = Album(session, folder, Trackers([]))
    measured = album.end(progress["recorder"]["step"], weights, predictions)
    for name, value in measured.items():
        print(f"{name} {number(value)}")
    print(f"drawn in {folder / 'figures'}")
