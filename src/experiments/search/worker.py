"""A worker: a process that takes trials of a study and runs them until there are none left."""

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import EXIT_CODES, Exit
from experiments.search.claims import Heart
from experiments.search.configs import Configs
from experiments.search.execution import TrialStop, run_trials
from experiments.search.results import write_results
from experiments.search.study import Study, Trial
from experiments.search.together import run_together
from experiments.search.winner import conclude
from experiments.training.devices import announce, split_processor
from experiments.training.kept import Kept
from experiments.training.runtime import set_up_compiler
from experiments.training.signals import StopRequest

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks for a trial that became free


def work(
    folder: Path, config_folder: Path, name: str | None = None, configs: Configs | None = None
) -> None:
    """Runs trials of the study in `folder` until its budget is spent.

    While other workers run the last trials it waits: one of them may die. `configs` are the
    study's, with what was composed of them already.

    Raises:
        Exit: it was asked to stop; its trials are saved and free again.
    """
    study, kept = Study(folder, config_folder, name, configs), Kept()
    split_processor(int(study.plan.lanes) * study.plan.seeds)
    set_up_compiler(study.configs.plain()["trainer"]["compilation_cache"])
    announce()
    with StopRequest() as stop:

        def look() -> None:
            if study.cancelled and stop.name is None:
                stop.name = "SIGTERM"

        with Heart(study.plan.heartbeat, look) as heart:
            while stop.name is None and not study.complete:
                trials = study.claim(int(study.plan.lanes))
                if trials:
                    run(study, trials, heart, stop, kept)
                    write_results(study)
                else:
                    time.sleep(POLL)
            if stop.name is None:
                conclude(study, heart, stop, kept)
    if stop.name is not None:
        log.info("stopped by %s", stop.name)
        raise Exit(EXIT_CODES["interrupted"])


def run(study: Study, trials: Sequence[Trial], heart: Heart, stop: StopRequest, kept: Kept) -> None:
    """Runs claimed trials and records what came out; those that were interrupted are put back."""
    stops = [TrialStop(stop) for _ in trials]
    for trial, own in zip(trials, stops, strict=True):
        heart.keep(trial.claim, own.lose)
    side_by_side = len(trials) > 1 or study.plan.seeds > 1
    outcomes = (run_together if side_by_side else run_trials)(study, trials, stops, kept)
    # one after another, each outcome is a training: it is not to keep other workers out
    with study.at_once() if side_by_side else contextlib.nullcontext():
        for trial, own, outcome in zip(trials, stops, outcomes, strict=True):
            if own.lost:  # the worker that has it now answers for it
                heart.drop(trial.claim)
            elif outcome.state == "interrupted":
                study.put_back(trial)
                heart.release(trial.claim)
            else:
                study.finish(trial, outcome.state, outcome.value, **outcome.attributes)
                heart.drop(trial.claim)
