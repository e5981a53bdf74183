"""Running trials: each is one normal run a seed, in the trial's folder."""

import contextlib
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments.core.config import check_config
from experiments.errors import UserError
from experiments.search.configs import as_yaml, assignments, resolved
from experiments.search.study import Study, Trial
from experiments.tracking.choice import chosen
from experiments.tracking.jsonl import SUMMARY, JsonLines
from experiments.tracking.tracker import Tracker, Trackers
from experiments.training import loop
from experiments.training.kept import Kept
from experiments.training.run_folder import exclusive
from experiments.training.runtime import set_up_compiler
from experiments.training.session import open_session
from experiments.training.signals import StopRequest
from experiments.training.stored import saved_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: one of the study's states, or `interrupted`."""

    state: str
    value: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


class TrialStop(StopRequest):
    """Stops one trial, because its worker is to stop or for reasons of its own."""

    def __init__(self, worker: StopRequest):
        self.worker, self.pruned, self.lost = worker, False, False

    @property
    def name(self) -> str | None:  # type: ignore[override]
        """The signal to stop, if there is one; to be pruned is like being asked to end."""
        return "SIGTERM" if self.pruned or self.lost else self.worker.name

    @property
    def status(self) -> str:  # type: ignore[override]
        """What the run ends with."""
        return "pruned" if self.pruned else "interrupted"

    def lose(self) -> None:
        """Notes that another worker has taken the trial over."""
        self.lost = True


class Reporter(Tracker):
    """Tells the study every validation, and stops a trial that the study prunes."""

    may_stop = True

    def __init__(self, trial: Trial, metric: str, stop: TrialStop):
        self.trial, self.metric, self.stop = trial, metric, stop

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Reports a line that holds the metric; its epoch is Optuna's step."""
        if self.metric not in scalars:
            return
        epoch = round(scalars["epoch"])
        if epoch not in self.trial.reported:
            self.trial.optuna.report(scalars[self.metric], epoch)
            self.stop.pruned = self.trial.optuna.should_prune()


def run_trials(
    study: Study, trials: Sequence[Trial], stops: Sequence[TrialStop], kept: Kept
) -> Iterator[Outcome]:
    """Runs trials one after another; yields what became of each.

    What trials of one static configuration share is taken from `kept`, so it is compiled once.
    """
    for trial, stop in zip(trials, stops, strict=True):
        yield run_trial(study, trial, stop, kept)


def run_trial(study: Study, trial: Trial, stop: TrialStop, kept: Kept) -> Outcome:
    """Runs the seeds of a trial; their median is its value. Goes on where an earlier attempt was.

    The first seed alone is subject to pruning. Whatever goes wrong is the outcome, not an error.
    """
    log.info("trial %d: %s", trial.number, " ".join(assignments(trial.values)))
    metric, seconds, scores = study.plan.metric, 0.0, []
    for index, folder in enumerate(run_folders(study, trial.folder)):
        if stop.name is not None:
            return Outcome("interrupted")
        trackers = [] if index else [Reporter(trial, metric, stop)]
        try:
            config = prepare(study, trial.number, trial.values, folder, index)
            summary = run_in(config, folder, trackers, stop, kept, test=False)
            status = summary["status"]
            if status == "interrupted":
                return Outcome("interrupted")
            seconds += summary["seconds"]
            if status == "diverged":
                reason = f"diverged at step {summary['diverged_at']}"
                return Outcome("diverged", None, {"seconds": seconds, "reason": reason})
            if metric not in summary["best"]:
                raise UserError(f"no epoch was validated, so there is no {metric}")
        except Exception as error:
            if isinstance(error.__cause__, BlockingIOError):  # a worker thought dead still runs it
                time.sleep(1)
                return Outcome("interrupted")
            log.warning("trial %d failed", trial.number, exc_info=True)
            return Outcome("failed", None, {"seconds": seconds, "reason": in_one_line(error)})
        scores.append(summary["best"][metric])
        if status == "pruned":
            reason = f"pruned after epoch {round(summary['epoch'])}"
            return Outcome("pruned", scores[0], {"seconds": seconds, "reason": reason})
    return Outcome("finished", statistics.median(scores), {"seconds": round(seconds, 3)})


def in_one_line(error: Exception) -> str:
    """What a failed trial is recorded with."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{kind}{first}"[:500]


def run_folders(study: Study, folder: Path) -> list[Path]:
    """The folders of a trial's runs: its own, or one a seed below it."""
    if study.plan.seeds == 1:
        return [folder]
    return [folder / f"seed_{index}" for index in range(study.plan.seeds)]


def prepare(
    study: Study, number: int, values: Mapping[str, Any], folder: Path, index: int
) -> dict[str, Any]:
    """Makes the folder of a run like that of `run.py`; returns the checked config."""
    config = study.configs.compose(values)
    config["seed"] += index
    together = study.plan.lanes != 1 and config["population"]["shared_batches"]
    if together and config["trainer"]["shuffle_seed"] is None:
        config["trainer"]["shuffle_seed"] = study.plan.seed
    config["name"] = f"{study.plan.name}-{number}" + (f"-{index}" if study.plan.seeds > 1 else "")
    if "group" in config["logger"] and config["logger"]["group"] is None:
        config["logger"]["group"] = study.plan.name
    plain = resolved(config)
    check_config(plain)
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True, exist_ok=True)
    overrides = [*study.plan.overrides, *assignments(values)]
    (hydra / "config.yaml").write_text(as_yaml(config))
    text = yaml.dump(overrides, Dumper=yaml.CSafeDumper)
    (hydra / "overrides.yaml").write_text(text)
    return plain


def run_in(
    config: dict[str, Any],
    folder: Path,
    trackers: Sequence[Tracker],
    stop: StopRequest,
    kept: Kept,
    *,
    test: bool,
) -> dict[str, Any]:
    """Trains in `folder`, on from the newest checkpoint if there is one; returns the summary."""
    set_up_compiler(config["trainer"]["compilation_cache"])
    everyone = Trackers([JsonLines(), *trackers, *chosen(config["logger"])])
    with exclusive(folder), logged_to(folder / "run.log"):
        summary: dict[str, Any] = {}
        try:
            session = open_session(config, kept)
            resume = resumable(folder)
            summary = loop.fit(session, folder, everyone, stop, resume=resume, test=test)
        finally:
            if not summary:
                everyone.finish({}, "failed")
    return summary


def resumable(folder: Path) -> bool:
    """Whether there is something to go on from: a whole checkpoint, or the end."""
    summary = folder / SUMMARY
    ended = summary.exists() and json.loads(summary.read_text())["status"] == "finished"
    return ended or saved_step(folder) > 0


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Writes log messages to a file too."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(name)s: %(message)s"))
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        handler.close()
