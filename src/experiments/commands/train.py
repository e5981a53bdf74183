"""Train a model, from the start or from a checkpoint on."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from experiments.core.callback import Callback
from experiments.core.config import build
from experiments.core.params import count_parameters
from experiments.errors import EXIT_CODES, Exit, UserError
from experiments.machine import StopRequest
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.terminal import Terminal
from experiments.tracking.tracker import Trackers, chosen
from experiments.training.devices.batch_size import find_batch_size, is_auto, with_batch_size
from experiments.training.distributed import is_first
from experiments.training.loop import fit
from experiments.training.options import Options
from experiments.training.run_folder import note_value
from experiments.training.runtime import announce, split_processor
from experiments.training.setup import Setups
from experiments.training.trial import Trial, overview

POPULATIONS = "populations"  # checkpoints of runs side by side


def main(
    config: dict[str, Any], directory: Path, source: Path | None, setups: Setups | None = None
) -> dict[str, Any]:
    """Train in `directory`, which is this process's own, and return the summary.

    `setups` are those that there are.

    Raises:
        Exit: the status of the run has an exit code other than 0.
    """
    from hydra.core.hydra_config import HydraConfig  # which workers of a search do without
    from hydra.types import RunMode

    # the test split is for the winner: none of the runs that a sweeper of Hydra's compares reads it
    compared = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    resume = source is not None
    (summary,) = train(
        {directory: config}, directory, resume=resume, setups=setups, test=not compared
    )
    if code := EXIT_CODES[summary["status"]]:
        raise Exit(code)
    return summary


def train(
    runs: Mapping[Path, dict[str, Any]],
    together: Path,
    *,
    resume: bool,
    setups: Setups | None = None,
    test: bool = True,
) -> list[dict[str, Any]]:
    """Train runs, several side by side, or go on where they ended; return their summaries.

    Args:
      runs: the config of each by its folder, which is this process's own.
      together: folder of what belongs to several of them.
      setups: those of earlier trainings, whose data need not be read again.
      test: evaluate the best weights on the test split.
    """
    alone, setups, trials = len(runs) == 1, setups or Setups(resumed=resume), dict[Path, Trial]()
    options: Options = build(next(iter(runs.values()))["population"])
    trackers = {folder: Trackers([]) for folder in runs}
    if is_first():
        shown: list[Callback] = [Terminal()] if alone else []
        trackers = {f: Trackers([JsonLines(), *shown, *chosen(c)]) for f, c in runs.items()}
    with StopRequest() as stop:
        split_processor(len(runs))
        announce()
        ended = "failed"
        hidden: tuple[type[BaseException], ...] = ()
        try:
            for folder, config in runs.items():
                if is_auto(config):
                    trackers[folder].status("finding the batch size")
                    config = _with_size_found(config, folder, alone=alone)
                trackers[folder].status("reading data")
                setup = setups.of(config)
                trials[folder] = Trial(setup, config, folder, trackers[folder], stop)
            every = list(trials.values())
            if alone:
                return fit(every, together, resume=resume, test=test)
            with shown_together(every, together, f"{len(every)} runs") as show:
                limits = {"width": options.width, "most": options.most, "test": test}
                where = together / POPULATIONS
                return fit(every, where, resume=resume, shown=show, **limits)  # type: ignore[arg-type]
        except BaseException as error:
            hidden = (UserError,)  # of the disk, in the place of the one that ended the run
            ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            raise
        finally:
            for folder in runs:
                if folder not in trials or not trials[folder].summary:
                    with contextlib.suppress(*hidden):
                        trackers[folder].finish({}, ended)


def _with_size_found(config: Mapping[str, Any], folder: Path, *, alone: bool) -> dict[str, Any]:
    """Return the config of a run with the batch size that fits, which its folder notes."""
    if not alone or jax.process_count() > 1:
        raise UserError(
            "data.batch_size=auto is for one run by itself, in one process: let one find the size, "
            "and say the number"
        )
    size = find_batch_size(config, folder)
    note_value(folder, "data.batch_size", size)
    return with_batch_size(config, size)


@contextlib.contextmanager
def shown_together(trials: Sequence[Trial], directory: Path, name: str) -> Iterator[Callable]:
    """Show trials in the terminal as one run with this name; yields what `fit` calls."""
    first, began, terminal = trials[0], time.perf_counter(), Terminal()
    info = first.info(count_parameters(first.setup.shapes.params))
    terminal.start(replace(info, directory=directory, name=name))
    status = "failed"
    try:
        yield lambda trials, step: terminal.log(step, overview(trials, step))
        status = "finished"
    finally:
        terminal.finish({"seconds": time.perf_counter() - began}, status)
