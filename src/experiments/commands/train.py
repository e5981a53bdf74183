"""Train a model, from the start or from a checkpoint on."""

from pathlib import Path
from typing import Any

from experiments.errors import EXIT_CODES, Exit
from experiments.machine import StopRequest
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.terminal import Terminal
from experiments.tracking.tracker import Trackers, chosen
from experiments.training.distributed import is_first
from experiments.training.loop import fit
from experiments.training.runtime import announce
from experiments.training.setup import Setups
from experiments.training.trial import Trial


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Train in `directory`, which is this process's own.

    Raises:
        Exit: the status of the run has an exit code other than 0.
    """
    trackers = Trackers([])
    if is_first():
        trackers = Trackers([JsonLines(), Terminal(), *chosen(config)])
    with StopRequest() as stop:
        announce()
        trackers.status("reading data")
        summary: dict[str, Any] = {}
        ended = "failed"
        try:
            trial = Trial(Setups().of(config), config, directory, trackers, stop)
            (summary,) = fit([trial], directory, resume=source is not None)
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            if not summary:
                trackers.finish({}, ended)
    if code := EXIT_CODES[summary["status"]]:
        raise Exit(code)
