"""The methods of a search: Optuna samplers and pruners.

`random`, `quasi_random` and `narrow` are pure functions of the seed, the number of the trial and
the name of the parameter: a trial has the same values in every worker, and a further parameter
changes no other one's. (Optuna's samplers of these names draw from one generator in the order of
the calls.) `grid` needs no sampler, since its points are laid down beforehand.
"""

import functools
import importlib.util
import math
import warnings
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from experiments.errors import UserError
from experiments.search.space import Parameter, Space, choice, in_optuna

if TYPE_CHECKING:
    from experiments.search.plan import Plan

BLOCK = 256  # points of a Sobol sequence that are made at once


class Streams(RandomSampler):
    """Random search (Bergstra & Bengio 2012): each parameter has a stream of its own."""

    def __init__(self, plan: "Plan", space: Space):
        super().__init__(plan.seed)
        self.seed, self.space = plan.seed, space

    def uniform(self, name: str, number: int) -> float:
        """Return the number in [0, 1) that decides parameter `name` of trial `number`."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), number]).random()

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, _: Any) -> Any:
        """Draw the value of one parameter, for Optuna."""
        return in_optuna(self.space.parameters[name].at(self.uniform(name, trial.number)))


class QuasiRandom(Streams):
    """Points of a scrambled Sobol sequence, which leave no large gaps; one axis per parameter."""

    def uniform(self, name: str, number: int) -> float:
        names = list(self.space.parameters)
        points = _sobol(len(names), self.seed, number // BLOCK)
        return float(points[number % BLOCK][names.index(name)])


@functools.lru_cache(maxsize=8)
def _sobol(axes: int, seed: int, block: int) -> np.ndarray:
    from scipy.stats import qmc

    engine = qmc.Sobol(axes, scramble=True, rng=np.random.default_rng(seed))
    if block:
        engine.fast_forward(block * BLOCK)
    return engine.random(BLOCK)


class Narrow(Streams):
    """Random search in rounds, whose ranges narrow around the best trial so far.

    In round r, counted from 0, a range has `shrink`ʳ of its whole width on its own scale, such as a
    logarithmic one; the best value is in its middle, or as near to it as the ends of the whole
    allow. Of a list that share of the values, rounded up, remains: those of the best trials.
    """

    def __init__(self, plan: "Plan", space: Space, trials: Sequence[FrozenTrial]):
        super().__init__(plan, space)
        self.shrink, self.length = plan.shrink, round_length(plan)
        self.trials, self.ranked = trials, plan.ranked(trials)

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, _: Any) -> Any:
        parameter, round_ = self.space.parameters[name], trial.number // self.length
        u, share = self.uniform(name, trial.number), self.shrink**round_
        best = self.best_values(name, round_)
        if not best:
            return in_optuna(parameter.at(u))
        if parameter.values:
            values = list(map(in_optuna, parameter.values))
            staying = list(dict.fromkeys([*best, *values]))[: math.ceil(share * len(values))]
            return choice([value for value in values if value in staying]).at(u)
        low = min(max(parameter.position(best[0]) - share / 2, 0.0), 1 - share)
        return parameter.at(low + u * share)

    def best_values(self, name: str, round_: int) -> list:
        """Return a parameter's values in the trials before a round, those of the best first."""
        before = {trial.number for trial in self.trials[: round_ * self.length]}
        return [t.params[name] for t in self.ranked if t.number in before and name in t.params]


def round_length(plan: "Plan") -> int:
    """Return the number of trials in each round of the method `narrow`."""
    return math.ceil(plan.n_trials / plan.rounds)


def may_start(plan: "Plan", trials: Sequence[FrozenTrial], place: int) -> bool:
    """Return True once the trials that the one at `place` depends on have ended.

    With `narrow` those are the rounds before its own; with other methods there are none.
    """
    before = place - place % round_length(plan) if plan.method == "narrow" else 0
    return all(trial.state.is_finished() for trial in trials[:before])


def sampler(plan: "Plan", space: Space, trials: Sequence[FrozenTrial], number: int) -> BaseSampler:
    """Return the sampler that draws the values of trial `number`, given all trials so far."""
    if plan.method in ("random", "grid"):
        return Streams(plan, space)
    if plan.method == "quasi_random":
        return QuasiRandom(plan, space)
    if plan.method == "narrow":
        return Narrow(plan, space, trials)
    seed = zlib.crc32(f"{plan.seed}/{number}".encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if plan.method == "bayes":
            # jointly within each set of parameters that exist together
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        if plan.method == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


def suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    """Return the config value of a parameter in a trial; it is drawn if the trial has none."""
    known = parameter.optuna
    if isinstance(known, CategoricalDistribution):
        value: Any = trial.suggest_categorical(name, known.choices)
    elif isinstance(known, IntDistribution):
        value = trial.suggest_int(name, known.low, known.high)
    else:
        value = trial.suggest_float(name, known.low, known.high, log=known.log)
    return parameter.finish(value)


def check_method(plan: "Plan") -> None:
    """Raise `UserError` where a method cannot do what is asked of it, or work on this machine."""
    if len(plan.metric) > 1:
        alone = {"narrow": "narrows around one best trial", "cmaes": "follows one metric"}
        if (why := alone.get(plan.method)) is not None:
            raise UserError(f"method={plan.method} {why}; for several take random, bayes or gp")
        if plan.early_terminate is not None:
            raise UserError("early_terminate= goes by one metric; with several say none")
    package = {"gp": "torch", "cmaes": "cmaes"}.get(plan.method)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"method={plan.method} needs {package}: pip install {package}; or take method=bayes"
        )
    pruner(plan)


def pruner(plan: "Plan") -> optuna.pruners.BasePruner:
    """Return what ends trials early, by `type`.

    Its epochs are evaluations: where `trainer.eval_every` is given, so many steps each.

    hyperband: asynchronous successive halving (ASHA, Li et al. 2020). At `min_epochs`,
    `min_epochs·eta`, `min_epochs·eta²`, ... epochs a trial goes on only among the best 1/eta of
    those that came as far. W&B's `min_iter` is `min_epochs`; with its `max_iter` and `s`,
    `min_epochs` is max_iter/eta^s.

    median: from `min_epochs` epochs on a trial goes on while its best value so far is no worse than
    the median of the finished trials at this epoch, once there are five of them.
    """
    settings = plan.early_terminate
    if settings is None:
        return optuna.pruners.NopPruner()
    eta, first = settings.get("eta", 3), settings.get("min_epochs") or settings.get("min_iter")
    if {"max_iter", "s"} & settings.keys():
        if first is not None or not {"max_iter", "s"} <= settings.keys():
            raise UserError("early_terminate needs min_epochs, or max_iter and s")
        first = max(1, round(settings["max_iter"] / eta ** settings["s"]))
    if settings["type"] == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=first or 1)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first or 1, reduction_factor=eta)
