"""Trains a model, from the start or on from a checkpoint."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from experiments.cli.command_line import EXIT_CODES, Exit
from experiments.tracking.choice import chosen
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.terminal import Terminal
from experiments.tracking.tracker import Trackers
from experiments.training import loop
from experiments.training.devices import announce
from experiments.training.distributed import is_first
from experiments.training.lock import exclusive
from experiments.training.session import open_session
from experiments.training.signals import StopRequest

NEEDS_RUN = False


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Trains, and ends with the exit code of the run's status."""
    trackers = Trackers([])
    if is_first():
        trackers = Trackers([JsonLines(), Terminal(), *chosen(config["logger"])])
    with StopRequest() as stop, exclusive(directory) if is_first() else nullcontext():
        announce()
        trackers.status("reading data")
        summary: dict[str, Any] = {}
        ended = "failed"
        try:
            session = open_session(config)
            summary = loop.fit(session, directory, trackers, stop, resume=source is not None)
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            if not summary:
                trackers.finish({}, ended)
    if code := EXIT_CODES[summary["status"]]:
        raise Exit(code)
