"""A worker: a process that claims trials of a study and trains them until there are none left.

Each trial is one normal run per seed, in the trial's folder.
"""

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial

from experiments.errors import EXIT_CODES, Exit, UserError
from experiments.machine import StopRequest, called, fault_of
from experiments.search.configs import (
    Configs,
    assignments,
    check_trial,
    compilation_cache,
    resolved,
)
from experiments.search.results import WINNER, values_of, winner_of, write_results
from experiments.search.shared.outcomes import Outcome, Summary, in_one_line, outcome_of
from experiments.search.shared.overviews import Overviews
from experiments.search.study import Study, Trial
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.log_file import log_file
from experiments.tracking.tracker import Tracker, Trackers, chosen
from experiments.training.loop import fit
from experiments.training.metrics import Periods
from experiments.training.run_folder import run_folder
from experiments.training.runtime import announce, data_mesh, set_up_compiler, split_processor
from experiments.training.setup import Setups
from experiments.training.trial import Trial as Training
from experiments.training.trial import overview

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between looks for a trial that became free
POPULATIONS = "populations"  # in the folder of the study: checkpoints of trials side by side


def work(
    folder: Path, config_folder: Path, name: str | None = None, configs: Configs | None = None
) -> None:
    """Train trials of the study in `folder` until its budget is spent.

    While other workers train the last trials it waits: one of them may die. `configs` are those of
    the study, some of them composed already.

    Raises:
        Exit: it was asked to stop; its trials are saved and free again.
        UserError: something is wrong with this machine; its trials are free again.
    """
    with StopRequest() as stop:
        try:
            Worker(Study(folder, config_folder, name, configs), stop).work()
        except Exception as error:
            if (fault := fault_of(error)) is None:
                raise
            raise UserError(f"{fault}; its trials wait to be run again") from error
    if stop.name is not None:
        log.info("stopped by %s", stop.cause)
        raise Exit(EXIT_CODES["interrupted"])


class TrialStop(StopRequest):
    """A request to stop one trial: because its worker is to stop, or for a `reason` of its own.

    The reason is `pruned`, `stopped` by hand, or `lost` if another worker has taken it over.
    """

    def __init__(self, worker: StopRequest):
        self.worker = worker
        self.reason: Literal["pruned", "stopped", "lost"] | None = None

    @property
    def name(self) -> str | None:  # type: ignore[override]
        """The signal to stop, if there is one; a reason counts as SIGTERM."""
        return "SIGTERM" if self.reason else self.worker.name

    @property
    def cause(self) -> str | None:
        """The signal or reason, in words."""
        reasons = {"pruned": "early_terminate", "lost": "a worker that took the trial over"}
        return reasons.get(self.reason, "stop=") if self.reason else self.worker.cause

    @property
    def status(self) -> str:  # type: ignore[override]
        """The status that the run ends with."""
        return self.reason if self.reason in ("pruned", "stopped") else "interrupted"

    def lose(self) -> None:
        """Note that another worker has taken the trial over."""
        self.reason = "lost"


class Reporter(Tracker):
    """A tracker that reports every validation to the study, and stops a trial that it prunes."""

    may_stop = True

    def __init__(self, trial: Trial, metric: str, stop: TrialStop, periods: Periods):
        self.trial, self.metric, self.stop, self.periods = trial, metric, stop, periods

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Report a line that holds the metric; the number of the evaluation is Optuna's step."""
        if self.metric not in scalars:
            return
        number = self.periods.number(step)
        if number not in self.trial.reported:
            self.trial.optuna.report(scalars[self.metric], number)
            if self.trial.optuna.should_prune():
                self.stop.reason = self.stop.reason or "pruned"


@dataclass(frozen=True)
class Run:
    """A training of a trial, with the seed of this index; `claimed` if its metric is reported."""

    number: int
    values: Mapping[str, Any]
    index: int
    folder: Path
    stop: TrialStop
    claimed: Trial | None


class Worker:
    """A worker; its trials share data and compiled programs."""

    def __init__(self, study: Study, stop: StopRequest):
        self.study, self.stop, self.setups = study, stop, Setups()
        self.stops: dict[int, TrialStop] = {}  # of the trials that train now
        study.space.vet(study.folder, objects=True)  # else it would be a failure of each trial
        config = study.configs.plain()
        split_processor(int(study.plan.side_by_side) * study.plan.seeds)
        set_up_compiler(compilation_cache(config), config["trainer"])
        data_mesh(config["trainer"]["devices"], config["data"]["batch_size"])  # or the study waits
        announce()
        self.limits = {name: config["population"][name] for name in ("width", "most")}
        self.overviews = Overviews(study)

    def _show(self, trials: Sequence[Training], step: int) -> None:
        self.overviews.write(overview(trials, step))
        if self.study.all_begun and step == trials[0].setup.experiment.total_steps:
            trials[0].setup.prepare_evaluation()  # of the winner, while these are saved

    def _look(self) -> None:
        if self.study.cancelled and self.stop.name is None:
            log.info("the study is cancelled")
            self.stop.name = "SIGTERM"
        for number, stop in list(self.stops.items()):
            if stop.reason is None and self.study.asked_to_stop(number):
                stop.reason = "stopped"

    def work(self) -> None:
        """Train until the budget is spent or a signal comes; then test the best trial."""
        if (there := len(self.study.trials())) < self.study.plan.n_trials:
            raise UserError(
                f"{self.study.folder} holds {there} of its {self.study.plan.n_trials} trials; "
                f"{called('sweep')} resume= lays the others down"
            )
        with self.study.claims.touched(self._look):
            while self.stop.name is None and not self.study.complete:
                trials = self.study.claim(int(self.study.plan.side_by_side))
                outcomes = self._train_claimed(trials)
                others = all(one.state == "interrupted" for one in outcomes)
                if others and self.stop.name is None:  # have the trials that are left
                    time.sleep(POLL)
            if self.stop.name is None:
                self._conclude()

    def _train_claimed(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Train trials and record what came out; put back those that were interrupted.

        All seeds of all trials are trained side by side. Whatever goes wrong with a trial is its
        outcome and does not concern the others; what goes wrong with the machine is raised.
        """
        if not trials:
            return []
        plan, runs = self.study.plan, []
        stops = [TrialStop(self.stop) for _ in trials]
        self.stops = {trial.number: stop for trial, stop in zip(trials, stops, strict=True)}
        for trial, stop in zip(trials, stops, strict=True):
            log.info("trial %d: %s", trial.number, " ".join(assignments(trial.values)))
            self.study.claims.hold(trial.claim, stop.lose)
            runs += self._runs(trial.number, trial.values, stop, trial)
        ended_runs = self._train(runs)
        outcomes = [
            outcome_of(trial.number, ended_runs[i * plan.seeds : (i + 1) * plan.seeds], plan.metric)
            for i, trial in enumerate(trials)
        ]
        recorded = False
        try:
            with self.study.at_once():
                for trial, stop, outcome in zip(trials, stops, outcomes, strict=True):
                    if outcome.state == "interrupted" and stop.reason != "lost":
                        self.study.put_back(trial)
                    elif stop.reason != "lost":  # else the worker that has it now answers for it
                        end = outcome.state, outcome.values
                        self.study.finish(trial, *end, **outcome.attributes)
            recorded = True
        finally:
            for trial, stop, outcome in zip(trials, stops, outcomes, strict=True):
                ended = stop.reason == "lost" or (recorded and outcome.state != "interrupted")
                (self.study.claims.drop if ended else self.study.claims.release)(trial.claim)
        for one in ended_runs:
            if isinstance(one, Exception) and fault_of(one):
                raise one
        write_results(self.study)
        return outcomes

    def _conclude(self) -> None:
        """Look at the test split once, for the best trial and replicates, in one worker of all."""
        study, claims = self.study, self.study.claims
        best = study.best()
        while best is not None and winner_of(study).get("trial") != best.number:
            key = f"winner-{best.number}"
            claim = claims.take(key, claims.latest().get(key), claims.now())
            if claim is None:
                time.sleep(POLL)
                continue
            stop = TrialStop(self.stop)
            self.study.claims.hold(claim, stop.lose)
            try:
                tested = self._test(best, stop)
            except Exception:
                self.study.claims.release(claim)
                raise
            if stop.name is not None:
                self.study.claims.release(claim)
                return
            study.optuna.set_user_attr(WINNER, {"trial": best.number} | tested)
            self.study.claims.drop(claim)
        write_results(study, ended=True)

    def _test(self, trial: FrozenTrial, stop: TrialStop) -> dict[str, float]:
        """Return `test/*` of the best trial's best weights, the median over its seeds.

        Before it what is compared with it is tested: see `Study.tested`.
        """
        *others, runs = (self._runs(t.number, values_of(t), stop) for t in self.study.tested(trial))
        if not resolved(self._config(runs[0]))["trainer"]["checkpoints"]:
            log.warning("the winner is not tested: trainer.checkpoints=false saved no weights")
            return {}
        for ended in self._train([run for some in others for run in some], test=True):
            if isinstance(ended, Exception):
                raise ended
        found: list[Summary] = []
        for run in runs:
            (summary,) = self._train([run], test=True)
            if isinstance(summary, Exception):
                raise summary
            found.append(summary)
        names = [name for name in found[0] if name.startswith("test/")]
        return {name: statistics.median(run[name] for run in found) for name in names}

    def _runs(
        self, number: int, values: Mapping[str, Any], stop: TrialStop, claimed: Trial | None = None
    ) -> list[Run]:
        """Return the runs of a trial: one in its folder, or one per seed below it.

        The first seed alone is subject to pruning.
        """
        folder, seeds = self.study.folder_of(number), self.study.plan.seeds
        folders = [folder] if seeds == 1 else [folder / f"seed_{index}" for index in range(seeds)]
        return [
            Run(number, values, index, folder, stop, None if index else claimed)
            for index, folder in enumerate(folders)
        ]

    def _config(self, run: Run) -> dict[str, Any]:
        """Return the config of a run, without interpolating."""
        plan, config = self.study.plan, self.study.configs.compose(self.study.settings(run.values))
        config["seed"] += run.index
        config["name"] = f"{plan.name}-{run.number}" + (f"-{run.index}" if plan.seeds > 1 else "")
        trackers = [config["logger"], *config["logger"].values()]
        for node in (node for node in trackers if isinstance(node, dict)):
            if {"group", "name"} <= node.keys():  # a name from the environment would be that of all
                node["group"] = node["group"] or os.environ.get("WANDB_RUN_GROUP") or plan.name
                node["name"] = node["name"] or config["name"]
        return config

    def _open(self, run: Run, stack: contextlib.ExitStack, *, alone: bool) -> Training:
        """Prepare a run; its folder is this process's own until the end of `stack`."""
        composed, plan = self._config(run), self.study.plan
        overrides = [*plan.overrides, *assignments(self.study.settings(run.values))]
        record = {"config": composed, "overrides": overrides}
        config = resolved(composed)
        check_trial(config)
        trackers = [JsonLines(), *chosen(config)]
        stack.enter_context(run_folder(run.folder, record, used="continued"))
        if alone:
            stack.enter_context(log_file(run.folder))
        setup = self.setups.of(config)
        # where no trial is pruned, reports of many would only cost time; Optuna takes one metric
        reports = (alone or plan.early_terminate is not None) and len(plan.metric) == 1
        if run.claimed is not None and reports:
            reporter = Reporter(run.claimed, plan.metric[0], run.stop, setup.periods)
            trackers.insert(1, reporter)
        return Training(setup, config, run.folder, Trackers(trackers), run.stop)

    def _train(self, runs: Sequence[Run], *, test: bool = False) -> list[Summary | Exception]:
        """Train runs side by side, on from where an earlier attempt was.

        Returns:
            The summary of each, or the error that it ended with.
        """
        alone = len(runs) == 1
        if alone and (stop := runs[0].stop).name is not None:
            return [{"status": stop.status, "seconds": 0.0, "epoch": 0, "best": {}}]
        opened: dict[int, Training] = {}
        ended: dict[int, Summary | Exception] = {}
        with contextlib.ExitStack() as stack:
            for index, run in enumerate(runs):
                try:
                    opened[index] = self._open(run, stack, alone=alone)
                except Exception as error:
                    ended[index] = error
            log.info("trials side by side: %d", len(opened))
            status = "failed"  # of those that have not ended by themselves
            try:
                folder = self.study.folder / POPULATIONS
                trials, show = list(opened.values()), self._show
                flags = {"resume": True, "test": test, "train": not test}
                fit(trials, folder, shown=show, **flags, **self.limits)
            except Exception as error:
                status = "interrupted" if fault_of(error) else "failed"
                if alone or status == "interrupted":
                    ended |= {i: error for i, trial in opened.items() if not trial.summary}
                else:  # the run to blame shows when each is trained alone
                    log.warning("one after another instead: %s", in_one_line(error), exc_info=error)
            finally:
                self.overviews.own.unlink(missing_ok=True)
                for index, trial in opened.items():
                    if trial.summary:
                        ended[index] = trial.summary
                    else:
                        with contextlib.suppress(UserError):  # of a disk that is full
                            trial.trackers.finish({}, status)
        return [
            ended[index] if index in ended else self._train([run])[0]
            for index, run in enumerate(runs)
        ]
