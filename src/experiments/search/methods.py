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

BEST = 0.25  # the part of a round's trials, at least two, that the ranges of the next one span
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
    """Random search in rounds: each round's ranges span the best trials of the round before.

    A range shrinks on its own scale, such as a logarithmic one, to the best trials and a margin of
    half their mean distance. Of a list, the values among the best trials remain.
    """

    def __init__(self, plan: "Plan", space: Space, trials: Sequence[FrozenTrial]):
        super().__init__(plan, space)
        self.length = round_length(plan)
        self.trials, self.ranked = trials, plan.ranked(trials)

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, _: Any) -> Any:
        parameter = self.space.parameters[name]
        u = self.uniform(name, trial.number)
        best = self.best_values(name, trial.number // self.length - 1)
        if not best:
            return in_optuna(parameter.at(u))
        if parameter.values:
            return choice([v for v in map(in_optuna, parameter.values) if v in best]).at(u)
        positions = [parameter.position(value) for value in best]
        low, high = min(positions), max(positions)
        margin = (high - low) / (2 * max(len(positions) - 1, 1))
        low, high = max(low - margin, 0.0), min(high + margin, 1.0)
        return parameter.at(low + u * (high - low))

    def best_values(self, name: str, round_: int) -> list:
        """Return a parameter's values in the best trials of a round; none before the first."""
        first = round_ * self.length
        members = {trial.number for trial in self.trials[first : first + self.length]}
        ranked = [trial for trial in self.ranked if trial.number in members]
        best = ranked[: max(2, math.ceil(BEST * len(ranked)))]
        return [t.params[name] for t in best if name in t.params]


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
    """Raise `UserError` where a method cannot work on this machine, or a pruner at all."""
    package = {"gp": "torch", "cmaes": "cmaes"}.get(plan.method)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"method={plan.method} needs {package}: pip install {package}; or take method=bayes"
        )
    pruner(plan)


def pruner(plan: "Plan") -> optuna.pruners.BasePruner:
    """Return what ends trials early: asynchronous successive halving (ASHA, Li et al. 2020).

    At `min_iter`, `min_iter·eta`, `min_iter·eta²`, ... epochs a trial goes on only among the best
    1/eta of those that came as far; with `max_iter` and `s`, at max_iter/eta^s and so on.
    """
    settings = plan.early_terminate
    if settings is None:
        return optuna.pruners.NopPruner()
    eta = settings.get("eta", 3)
    if "min_iter" in settings:
        first = settings["min_iter"]
    elif "max_iter" in settings and "s" in settings:
        first = max(1, round(settings["max_iter"] / eta ** settings["s"]))
    else:
        raise UserError("early_terminate needs min_iter, or max_iter and s")
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=eta)
