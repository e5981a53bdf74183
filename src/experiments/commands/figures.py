"""Draw the figures of an earlier run's best weights."""

from pathlib import Path
from typing import Any

from experiments.tracking.terminal import Terminal, number
from experiments.tracking.tracker import Trackers
from experiments.training.figures import RunFigures, view_of
from experiments.training.restored import Restored
from experiments.training.run_folder import exclusive, split_source


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Write them to `figures/` of the run and print where."""
    terminal = Terminal()
    run = Restored(config, source, terminal)
    terminal.status("drawing")
    folder, _ = split_source(source)
    figures = RunFigures(view_of(run.setup, run.hparams, folder), folder, Trackers([]), every=1)
    _, predictions = run.predict("test")
    step = run.progress["recorder"]["step"]
    with exclusive(folder):
        drawn = figures.finish(step, run.weights, predictions)
    for name, value in drawn.items():
        print(f"{name} {number(value)}")
    print(f"drawn in {folder / 'figures'}")
