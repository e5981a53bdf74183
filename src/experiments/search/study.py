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
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from experiments.errors import UserError
from experiments.machine import called
from experiments.search import methods, points
from experiments.search.configs import Configs, configs_of
from experiments.search.plan import FILE, Plan, read_plan
from experiments.search.readers import read_space
from experiments.search.shared.claims import RELEASED, Claim, Claims
from experiments.search.shared.storage import open_storage
from experiments.training.run_folder import check_unused, is_run

log = logging.getLogger(__name__)

CANCEL = "cancel"
SEED = "seed"
TRIALS = "trials"
BEGUN_AT_ONCE = 16  # trials that begin in one go, while other workers wait for the journal
PLACE = "place"  # attribute of a trial that runs again: the number of the first one
STATES = ("waiting", "running", "finished", "pruned", "diverged", "failed")

STOP = "stop"  # in the folder of a trial: it is to end

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
            directions=self.plan.goal,
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
        known = self.optuna.get_trials(deepcopy=False)
        there = sum(PLACE not in trial.user_attrs for trial in known)
        with self.at_once():
            for point in points.laid_down(self.plan, self.space)[there:]:
                self.optuna.enqueue_trial(point)

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

    def stop(self, number: int) -> None:
        """Ask the worker of a trial to end it."""
        (self.folder_of(number) / STOP).touch()

    def asked_to_stop(self, number: int) -> bool:
        """Return whether a trial is to end."""
        return (self.folder_of(number) / STOP).exists()

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
        """Return the finished trials, the best one first; replicates go by their mean.

        Of several metrics it is the front alone.
        """
        ranked = self.plan.ranked(self.trials())
        if SEED not in self.plan.parameters or len(self.optuna.directions) > 1:
            return ranked
        values: dict[str, list[float]] = {}
        for trial in ranked:
            values.setdefault(_without_seed(trial), []).append(trial.values[0])
        sign = 1 if self.optuna.directions[0] == StudyDirection.MINIMIZE else -1
        return sorted(ranked, key=lambda t: sign * statistics.fmean(values[_without_seed(t)]))

    def replicates(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the finished trials that differ from this one in their seed alone, and itself."""
        return [t for t in self.ranked() if _without_seed(t) == _without_seed(trial)]

    def tested(self, best: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials to test: replicates of the best, or all that are compared; it last."""
        compared = self.plan.seeds > 1 or SEED in self.plan.parameters
        every = self.ranked() if compared and self.plan.method == "grid" else self.replicates(best)
        return [*(trial for trial in every if trial.number != best.number), best]

    def best(self) -> FrozenTrial | None:
        """Return the finished trial with the best value; None where there are several metrics."""
        return next(iter(self.ranked()), None) if len(self.plan.metric) == 1 else None

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

    def finish(
        self, trial: Trial, state: str, values: Sequence[float] | None, **attributes: Any
    ) -> None:
        """Record what came out of a trial, unless another worker has taken it over."""
        if trial.claim.next_path.exists():
            return
        ends = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        end = ends.get(state, TrialState.FAIL)
        self._record(trial.number, end, values, attributes | {"state": state})

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
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None,
        attributes: dict[str, Any],
    ) -> None:
        # a worker that took the trial over may have recorded its end before
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError), self.at_once():
            for key, attribute in attributes.items():
                self.storage.set_trial_user_attr(self._id(number), key, attribute)
            self.storage.set_trial_state_values(self._id(number), state, values)

    def _current(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self._id(number))

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)


def _without_seed(trial: FrozenTrial) -> str:
    values = trial.user_attrs.get("values", {})
    return repr(sorted((key, repr(value)) for key, value in values.items() if key != SEED))


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
    name_metrics(study.optuna, plan.metric)
    study.lay_down()
    return study


def name_metrics(study: optuna.Study, metrics: list[str]) -> None:
    """Have charts and Optuna's dashboard show what a study's values are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(metrics)
