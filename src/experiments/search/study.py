"""A study: a folder, an Optuna study in shared storage, and trials that workers claim.

    study.yaml          the plan
    journal.log         the Optuna study, unless `storage` names a database
    claims/             who runs what
    trials/<number>/    the run of each trial (`seed_<n>/` below it where there are several seeds)
    workers/            what each worker printed
    results.csv         and best.yaml, best.txt: what came out

All trials of the budget are laid down when the study is made, so that the budget is the study's
own, whoever works on it.
"""

import os
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.errors import UserError
from experiments.search import methods
from experiments.search.claims import Claim, Claims
from experiments.search.configs import Configs, configs_of
from experiments.search.distributions import in_optuna
from experiments.search.plan import FILE, Plan, read_plan
from experiments.search.space import read_space
from experiments.search.storage import at_once, open_storage

CANCEL = "cancel"
BEGUN_AT_ONCE = 16  # trials whose values are drawn while others wait for the journal
STATES = ("waiting", "running", "finished", "pruned", "diverged", "failed")


@dataclass
class Trial:
    """A trial that this worker has claimed."""

    number: int
    values: dict[str, Any]
    folder: Path
    claim: Claim
    optuna: optuna.Trial
    reported: frozenset[int]
    """Epochs whose validation an earlier attempt reported."""


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
        self.configs = configs or configs_of(config_folder, tuple(self.plan.overrides))
        self.space = read_space(self.plan.parameters, self.configs)
        self.claims = Claims(folder / "claims", self.worker, self.plan.heartbeat)
        self.optuna = optuna.create_study(
            storage=open_storage(folder, self.plan.storage),
            study_name=self.plan.name,
            direction=self.plan.goal,
            pruner=methods.pruner(self.plan),
            load_if_exists=True,
        )

    def trials(self) -> list[FrozenTrial]:
        """The trials of the budget, by number."""
        return self.optuna.get_trials(deepcopy=False)[: self.plan.n_trials]

    def lay_down(self) -> None:
        """Makes the trials of the budget that are not there yet."""
        points: list[dict[str, Any]] = [{}] * self.plan.n_trials
        if self.plan.method == "grid":
            points = self.space.grid(self.plan.n_trials)
        there = len(self.optuna.get_trials(deepcopy=False))
        with self.at_once():
            for point in points[there : self.plan.n_trials]:
                self.optuna.enqueue_trial({name: in_optuna(value) for name, value in point.items()})

    def at_once(self) -> AbstractContextManager:
        """Within it all that is recorded is written as one: a lock and a wait for the disk."""
        return at_once(self.optuna._storage)

    @property
    def complete(self) -> bool:
        """Whether the budget is spent."""
        trials = self.trials()
        spent = all(trial.state.is_finished() for trial in trials)
        return spent and len(trials) == self.plan.n_trials

    @property
    def cancelled(self) -> bool:
        """Whether the workers were asked to stop."""
        return (self.folder / CANCEL).exists()

    # ------------------------------------------------------------------ what workers do

    def claim(self, most: int) -> list[Trial]:
        """Up to `most` trials that are this worker's to run, by number.

        A trial that cost several workers their lives is recorded as failed and not handed out.
        """
        trials, claims, now = self.trials(), self.claims.latest(), self.claims.now()
        taken: list[tuple[FrozenTrial, Claim]] = []
        for trial in trials:
            if len(taken) == most or not methods.may_start(self.plan, trials, trial.number):
                break
            if trial.state.is_finished():
                continue
            key = str(trial.number)
            claim = self.claims.take(key, claims.get(key), now)
            if claim is None:
                continue
            trial = self._current(trial)
            if trial.state.is_finished():  # its former owner was not dead after all
                continue
            deaths = self.claims.deaths(key) if claim.attempt else 0
            if deaths >= self.plan.attempts:
                reason = f"{deaths} workers died while they ran it"
                self._record(trial._trial_id, TrialState.FAIL, None, {"reason": reason})
                continue
            taken.append((trial, claim))
        begun: list[Trial] = []
        for start in range(0, len(taken), BEGUN_AT_ONCE):
            with self.at_once():
                begun += [self._begin(*one) for one in taken[start : start + BEGUN_AT_ONCE]]
        return begun

    def finish(self, trial: Trial, state: str, value: float | None, **attributes: Any) -> None:
        """Records what came out of a trial, unless another worker has taken it over."""
        if trial.claim.next_path.exists():
            return
        ends = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        end = ends.get(state, TrialState.FAIL)
        attributes |= {"state": state}
        self._record(trial.optuna._trial_id, end, value, attributes)

    def put_back(self, trial: Trial) -> None:
        """Marks a trial as waiting; its claim is still to be released."""
        if not self._current(trial.optuna).state.is_finished():
            self.optuna._storage.set_trial_state_values(trial.optuna._trial_id, TrialState.WAITING)

    def _begin(self, frozen: FrozenTrial, claim: Claim) -> Trial:
        """Marks a trial as running and decides on its values, unless an earlier attempt did."""
        storage = self.optuna._storage
        if frozen.state == TrialState.WAITING:
            storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        study = optuna.load_study(  # a new one: samplers read trials from a cache that it keeps
            study_name=self.plan.name,
            storage=storage,
            sampler=methods.sampler(self.plan, self.space, self.trials(), frozen.number),
            pruner=self.optuna.pruner,
        )
        trial = optuna.Trial(study, frozen._trial_id)
        values = self.space.draw(lambda name, d: methods.suggest(trial, name, d))
        if "values" not in frozen.user_attrs:
            trial.set_user_attr("values", values)
        reported = frozenset(frozen.intermediate_values)
        return Trial(frozen.number, values, self.folder_of(frozen.number), claim, trial, reported)

    def _record(
        self, trial_id: int, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> None:
        storage = self.optuna._storage
        try:
            with self.at_once():
                for key, attribute in attributes.items():
                    storage.set_trial_user_attr(trial_id, key, attribute)
                values = None if value is None else [value]
                storage.set_trial_state_values(trial_id, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # who took the trial over was faster

    def _current(self, trial: FrozenTrial | optuna.Trial) -> FrozenTrial:
        return self.optuna._storage.get_trial(trial._trial_id)

    # ------------------------------------------------------------------ what came out

    def folder_of(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / "trials" / str(number)

    def best(self) -> FrozenTrial | None:
        """The finished trial with the best value."""
        done = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        sign = 1 if self.plan.goal == "minimize" else -1
        return min(done, key=lambda t: sign * t.value, default=None)  # type: ignore[operator]


def state_of(trial: FrozenTrial) -> str:
    """One of `STATES`."""
    names = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running"}
    names |= {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
    return trial.user_attrs.get("state") or names.get(trial.state, "failed")


def create_study(plan: Plan, folder: Path, config_folder: Path) -> Study:
    """Makes the folder of a new study and lays down its trials.

    Raises:
        UserError: there is a study in `folder` already.
    """
    if (folder / FILE).exists():
        raise UserError(
            f"there is a study in {folder} already; go on with: python sweep.py resume={folder}"
        )
    methods.check_method(plan)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.name in optuna.get_all_study_names(open_storage(folder, plan.storage)):
        raise UserError(f"storage={plan.storage} holds a study {plan.name} already; say name=...")
    plan.save(folder)
    study = Study(folder, config_folder)
    study.lay_down()
    return study
