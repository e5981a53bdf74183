"""Running several trials as populations: those of one static configuration as one program."""

import contextlib
import logging
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.core.config import build
from experiments.search.execution import (
    Outcome,
    Reporter,
    TrialStop,
    in_one_line,
    prepare,
    run_folders,
    run_trials,
)
from experiments.search.study import Study, Trial
from experiments.tracking.choice import chosen
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.tracker import Trackers
from experiments.training.compiled import compile_evaluation_ahead
from experiments.training.kept import Kept
from experiments.training.options import Options
from experiments.training.population_fit import compile_ahead, fit_together, open_lane
from experiments.training.population_lane import Member
from experiments.training.run_folder import exclusive
from experiments.training.runtime import set_up_compiler
from experiments.training.session import Session

log = logging.getLogger(__name__)

POPULATIONS = "populations"  # the folder of their checkpoints, in that of the study


def run_together(
    study: Study, trials: Sequence[Trial], stops: Sequence[TrialStop], kept: Kept
) -> list[Outcome]:
    """Runs all seeds of all trials side by side; returns what became of each trial.

    A trial that cannot even start is its own outcome and no concern of the others.
    """
    broken: dict[int, Outcome] = {}
    members: list[Member] = []
    owners: list[int] = []
    options = build(study.configs.plain()["population"])
    with contextlib.ExitStack() as locks, ThreadPoolExecutor() as pool:
        for number, (trial, stop) in enumerate(zip(trials, stops, strict=True)):
            try:
                found = list(_members(study, trial, stop, kept, locks))
            except Exception as error:
                lost = isinstance(error.__cause__, BlockingIOError)  # its old worker is alive
                if not lost:
                    log.warning("trial %d failed", trial.number, exc_info=True)
                reason = {"seconds": 0.0, "reason": in_one_line(error)}
                broken[number] = Outcome("interrupted") if lost else Outcome("failed", None, reason)
                continue
            if not members and _alike(trials, found[0].session):
                _compile_ahead(study, trials, found[0].session, options, pool)
            members += found
            owners += [number] * len(found)
        log.info("%d runs side by side", len(members))
        try:
            summaries = fit_together(
                members,
                study.folder / POPULATIONS,
                width=options.width,
                most=options.most,
                test=False,
                trained=lambda: _compile_test_ahead(study, trials, members[0].session, pool),
            )
        except Exception as error:  # which trial is to blame shows when each runs alone
            log.warning("one after another instead: %s", in_one_line(error), exc_info=True)
            for member in members:
                member.trackers.finish({}, "failed")
            summaries = None
    if summaries is None:
        return list(run_trials(study, trials, stops, kept))
    of = {
        number: [s for owner, s in zip(owners, summaries, strict=True) if owner == number]
        for number in range(len(trials))
    }
    return [broken.get(n) or _outcome(of[n], study.plan.metric) for n in range(len(trials))]


def _members(
    study: Study, trial: Trial, stop: TrialStop, kept: Kept, locks: contextlib.ExitStack
) -> Iterator[Member]:
    for index, folder in enumerate(run_folders(study, trial.folder)):
        config = prepare(study, trial.number, trial.values, folder, index)
        set_up_compiler(config["trainer"]["compilation_cache"])
        locks.enter_context(exclusive(folder))
        watched = study.plan.early_terminate is not None and index == 0
        reporters = [Reporter(trial, study.plan.metric, stop)] if watched else []
        trackers = Trackers([JsonLines(), *reporters, *chosen(config["logger"])])
        yield Member(open_lane(config, kept), Path(folder), trackers, stop)


def _alike(trials: Sequence[Trial], session: Session) -> bool:
    """Whether the runs of all trials will be one population, by all that shows beforehand."""
    traced = {"seed", *session.hparams}
    return all(trial.values.keys() <= traced for trial in trials)


def _compile_ahead(
    study: Study, trials: Sequence[Trial], session: Session, options: Options, pool: Executor
) -> None:
    """Has `pool` compile the program of all runs while they are set up."""
    seeds = study.plan.seeds > 1 or "seed" in trials[0].values
    compile_ahead(
        session,
        len(trials) * study.plan.seeds,
        pool,
        own_batches=seeds and session.trainer.shuffle_seed is None,
        width=options.width,
        most=options.most,
    )


def _compile_test_ahead(
    study: Study, trials: Sequence[Trial], session: Session, pool: Executor
) -> None:
    """Where these are the last trials, has `pool` compile the test of the winner.

    While a population is saved a processor is idle.
    """
    own = {trial.number for trial in trials}
    if all(t.number in own or t.state.is_finished() for t in study.trials()):
        compile_evaluation_ahead(session, pool)


def _outcome(summaries: Sequence[dict[str, Any]], metric: str) -> Outcome:
    """What a trial came to, from the summaries of its seeds."""
    seconds = round(sum(summary["seconds"] for summary in summaries), 3)
    for summary in summaries:
        status = summary["status"]
        if status == "interrupted":
            return Outcome("interrupted")
        if status == "diverged":
            reason = f"diverged at step {summary['diverged_at']}"
            return Outcome("diverged", None, {"seconds": seconds, "reason": reason})
        if metric not in summary["best"]:
            reason = f"no epoch was validated, so there is no {metric}"
            return Outcome("failed", None, {"seconds": seconds, "reason": reason})
    scores = [summary["best"][metric] for summary in summaries]
    if (first := summaries[0])["status"] == "pruned":
        reason = f"pruned after epoch {round(first['epoch'])}"
        return Outcome("pruned", scores[0], {"seconds": seconds, "reason": reason})
    return Outcome("finished", statistics.median(scores), {"seconds": seconds})
