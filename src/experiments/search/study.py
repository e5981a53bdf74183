"""A study: a folder, an Optuna study in shared storage, and trials that workers claim.

    study.yaml          the plan
    journal.log         the Optuna study, unless `storage` names a database
    claims/             which worker runs what
    trials/<number>/    the run of each trial (`seed_<n>/` below it where there are several seeds)
    workers/            what each worker printed
    results.csv         and best.yaml, best.txt: the results

All trials of the budget are laid down when the study is made: however many workers come and go,
they run just these.
"""

import contextlib
import logging
import os
import statistics
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.errors import UserError, masked, refusal_of_jax
from experiments.machine import called, fault_of
from experiments.search import methods
from experiments.search.claims import RELEASED, Claim, Claims
from experiments.search.configs import Configs, configs_of
from experiments.search.plan import FILE, Plan, read_plan
from experiments.search.readers import read_space
from experiments.search.space import in_optuna
from experiments.search.storage import open_storage
from experiments.training.run_folder import check_unused, is_run

log = logging.getLogger(__name__)

CANCEL = "cancel"
TRIALS = "trials"
BEGUN_AT_ONCE = 16  # trials that begin in one go, while other workers wait for the journal
PLACE = "place"  # attribute of a trial that runs again: the number of the first one
STATES = ("waiting", "running", "finished", "pruned", "diverged", "failed")

Summary = dict[str, Any]

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Trial:
    """A trial that this worker has claimed.

    Args:
      reported: evaluations that an earlier attempt has reported the metric of.
    """

    number: int
    values: dict[str, Any]
    claim: Claim
    optuna: optuna.Trial
    reported: frozenset[int]


class Outcome(NamedTuple):
    """The end of a trial: one of the study's states or `interrupted`, its value, attributes."""

    state: str
    value: float | None = None
    attributes: Mapping[str, Any] = {}


class Study:
    """The study in `folder`, as the worker called `worker` sees it."""

    def __init__(
        self,
        folder: Path,
        config_folder: Path,
        worker: str | None = None,
        configs: Configs | None = None,
    ):
        self.folder, self.plan = folder, read_plan(folder)
        self.worker = worker or f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        plan = self.plan
        self.configs = configs or configs_of(config_folder, tuple(plan.overrides), plan.config_dir)
        self.space = read_space(self.plan.parameters, self.configs)
        self.claims = Claims(folder / "claims", self.worker, self.plan.heartbeat)
        self.storage, self.at_once = open_storage(folder, self.plan.storage)
        self.optuna = optuna.create_study(
            storage=self.storage,
            study_name=self.plan.name,
            direction=self.plan.goal,
            pruner=methods.pruner(self.plan),
            load_if_exists=True,
        )
        self.id = self.storage.get_study_id_from_name(self.plan.name)

    def trials(self) -> list[FrozenTrial]:
        """Return the trials of the budget in order; one that ran again is in its first place."""
        newest = {
            trial.user_attrs.get(PLACE, trial.number): trial
            for trial in self.optuna.get_trials(deepcopy=False)
        }
        return [newest[place] for place in sorted(newest)[: self.plan.n_trials]]

    def lay_down(self) -> None:
        """Make the trials of the budget that are not there yet."""
        points: list[dict[str, Any]] = [{}] * self.plan.n_trials
        if self.plan.method == "grid":
            points = self.space.grid(self.plan.n_trials)
        known = self.optuna.get_trials(deepcopy=False)
        there = sum(PLACE not in trial.user_attrs for trial in known)
        with self.at_once():
            for point in points[there : self.plan.n_trials]:
                self.optuna.enqueue_trial({name: in_optuna(value) for name, value in point.items()})

    def retry(self) -> int:
        """Lay down all failed trials again, as new ones with the same values; return how many."""
        failed = [trial for trial in self.trials() if state_of(trial) == "failed"]
        with self.at_once():
            for trial in failed:
                place = {PLACE: trial.user_attrs.get(PLACE, trial.number)}
                self.optuna.enqueue_trial(trial.params, user_attrs=place)
        return len(failed)

    @property
    def complete(self) -> bool:
        """True once the budget is spent."""
        ended = [trial for trial in self.trials() if trial.state.is_finished()]
        return len(ended) == self.plan.n_trials

    @property
    def all_begun(self) -> bool:
        """True when no trial of the budget waits to be claimed."""
        return all(trial.state != TrialState.WAITING for trial in self.trials())

    @property
    def cancelled(self) -> bool:
        """True once the workers were asked to stop."""
        return (self.folder / CANCEL).exists()

    def folder_of(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.folder / TRIALS / str(number)

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all that makes a trial's config of the study's: its values, and what it shares.

        Trials side by side read their batches in one order, which a run by itself would not have.
        """
        config = self.configs.compose(values) if self.plan.side_by_side != 1 else None
        if config is None or not config["population"]["shared_batches"]:
            return dict(values)
        own = config["trainer"]["shuffle_seed"]
        return {**values, "trainer.shuffle_seed": self.plan.seed if own is None else own}

    def ranked(self) -> list[FrozenTrial]:
        """Return the finished trials, the best one first."""
        return self.plan.ranked(self.trials())

    def best(self) -> FrozenTrial | None:
        """Return the finished trial with the best value."""
        return next(iter(self.ranked()), None)

    def claim(self, most: int) -> list[Trial]:
        """Return up to `most` trials that are now this worker's to run, by number.

        A trial during which several workers have died is recorded as failed and not handed out.
        """
        taken: list[tuple[FrozenTrial, Claim]] = []
        try:
            return self._claim(most, taken)
        except Exception:
            for _, claim in taken:
                self.claims.release(claim)
            raise

    def _claim(self, most: int, taken: list[tuple[FrozenTrial, Claim]]) -> list[Trial]:
        """Do what `claim` does; note in `taken` what was claimed so far."""
        trials, claims, now = self.trials(), self.claims.latest(), self.claims.now()
        for place, trial in enumerate(trials):
            if len(taken) == most or not methods.may_start(self.plan, trials, place):
                break
            if trial.state.is_finished():
                continue
            key = str(trial.number)
            before = claims.get(key)
            claim = self.claims.take(key, before, now)
            if claim is None:
                continue
            if before is not None and before.touched != RELEASED:
                log.warning("trial %s: its worker %s has died; it goes on here", key, before.worker)
            trial = self._current(trial.number)
            if trial.state.is_finished():  # its former owner was not dead after all
                continue
            deaths = self.claims.deaths(key) if claim.attempt else 0
            if deaths >= self.plan.attempts:
                reason = f"{deaths} workers died while they ran it"
                self._record(trial.number, TrialState.FAIL, None, {"reason": reason})
                continue
            taken.append((trial, claim))
        begun: list[Trial] = []
        for start in range(0, len(taken), BEGUN_AT_ONCE):
            with self.at_once():
                begun += [self._begin(*one) for one in taken[start : start + BEGUN_AT_ONCE]]
        return begun

    def finish(self, trial: Trial, state: str, value: float | None, **attributes: Any) -> None:
        """Record what came out of a trial, unless another worker has taken it over."""
        if trial.claim.next_path.exists():
            return
        ends = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        end = ends.get(state, TrialState.FAIL)
        self._record(trial.number, end, value, attributes | {"state": state})

    def put_back(self, trial: Trial) -> None:
        """Mark a trial as waiting; its claim is still to be released."""
        if not self._current(trial.number).state.is_finished():
            self.storage.set_trial_state_values(self._id(trial.number), TrialState.WAITING)

    def _begin(self, frozen: FrozenTrial, claim: Claim) -> Trial:
        """Mark a trial as running and decide on its values, unless an earlier attempt did."""
        number = frozen.number
        if frozen.state == TrialState.WAITING:
            self.storage.set_trial_state_values(self._id(number), TrialState.RUNNING)
        study = optuna.load_study(  # a new one: samplers read trials from a cache in it
            study_name=self.plan.name,
            storage=self.storage,
            sampler=methods.sampler(self.plan, self.space, self.trials(), number),
            pruner=self.optuna.pruner,
        )
        trial = optuna.Trial(study, self._id(number))
        values = self.space.draw(lambda name, parameter: methods.suggest(trial, name, parameter))
        if "values" not in frozen.user_attrs:
            trial.set_user_attr("values", values)
        reported = frozenset(frozen.intermediate_values)
        return Trial(number, values, claim, trial, reported)

    def _record(
        self, number: int, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> None:
        # a worker that took the trial over may have recorded its end before
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), self.at_once():
            for key, attribute in attributes.items():
                self.storage.set_trial_user_attr(self._id(number), key, attribute)
            values = None if value is None else [value]
            self.storage.set_trial_state_values(self._id(number), state, values)

    def _current(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(number))

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)


def state_of(trial: FrozenTrial) -> str:
    """Return one of `STATES`."""
    names = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running"}
    names |= {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
    return trial.user_attrs.get("state") or names.get(trial.state, "failed")


def create_study(plan: Plan, folder: Path, config_folder: Path) -> Study:
    """Make the folder of a new study and lay down its trials.

    Raises:
        UserError: there is a study in `folder` already.
    """
    if (folder / FILE).exists():
        raise UserError(
            f"there is a study in {folder} already; "
            f"go on with: {called('sweep')} {quote(f'resume={folder}')}"
        )
    if (folder / TRIALS).is_dir():  # whose weights new trials would take for their own
        raise UserError(f"{folder} holds trials without {FILE}; choose another folder")
    if is_run(folder):
        raise UserError(f"{folder} is the folder of a run; choose another one for a study")
    check_unused(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.name in optuna.get_all_study_names(open_storage(folder, plan.storage)[0]):
        raise UserError(f"storage={plan.storage} holds a study {plan.name} already; say name=...")
    plan.save(folder)
    study = Study(folder, config_folder)
    study.lay_down()
    return study


def outcome_of(trial: int, ended: Sequence[Summary | Exception], metric: str) -> Outcome:
    """Return the outcome of a trial, from the summaries or errors of its runs."""
    spent = {"seconds": round(sum(run["seconds"] for run in ended if isinstance(run, dict)), 3)}

    def without_value(state: str, reason: str) -> Outcome:
        return Outcome(state, None, spent | {"reason": reason})

    scores, pruned = [], None
    for run in ended:
        if isinstance(run, Exception):
            # its last worker is not dead after all, or it is no fault of the trial
            if isinstance(run.__cause__, BlockingIOError) or fault_of(run):
                return Outcome("interrupted")
            log.warning("trial %d failed", trial, exc_info=run)
            return without_value("failed", in_one_line(run))
        if run["status"] == "interrupted":
            return Outcome("interrupted")
        if run["status"] == "diverged":
            return without_value("diverged", f"diverged at step {run['diverged_at']}")
        if run["status"] == "pruned":
            pruned = pruned or {"reason": f"pruned after epoch {round(run['epoch'], 2):g}"}
        elif metric not in run["best"]:
            return without_value("failed", f"no epoch was validated, so there is no {metric}")
        scores.append(run["best"].get(metric))
    if pruned is not None:
        return Outcome("pruned", scores[0], spent | pruned)
    return Outcome("finished", statistics.median(scores), spent)


def in_one_line(error: Exception) -> str:
    """Return the reason that is recorded of a trial which failed with this error."""
    if (refusal := refusal_of_jax(error)) is not None:
        return "; ".join(refusal.splitlines())
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    first = next(iter(str(error).strip().splitlines()), "")
    return masked(f"{kind}{first}")[:500]
