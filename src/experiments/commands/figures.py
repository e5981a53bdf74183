"""Draws the figures of an earlier run's best weights."""

from pathlib import Path
from typing import Any

from experiments.tracking.terminal import Terminal, number
from experiments.tracking.tracker import Trackers
from experiments.training.report import Album
from experiments.training.restored import restored
from experiments.training.run_folder import split_source


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Writes them to `figures/` of the run and says which."""
    terminal = Terminal()
    run = restored(config, source, terminal)
    terminal.status("drawing")
    folder, _ = split_source(source)
    album = Album(run.session, folder, Trackers([]))
    measured = album.end(run.progress["recorder"]["step"], run.weights, run.predict("test"))
    for name, value in measured.items():
        print(f"{name} {number(value)}")
    print(f"drawn in {folder / 'figures'}")
