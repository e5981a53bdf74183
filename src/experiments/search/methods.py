"""How a search decides: Optuna samplers and pruners for the methods of a plan.

`random`, `quasi_random` and `narrow` are pure functions of the seed, the number of the trial and
the name of the parameter: a trial draws the same values whoever runs it, and adding a parameter
changes no other one's draws. `grid` needs no sampler, since its points are laid down beforehand.
"""

import functools
import importlib.util
import math
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from experiments.errors import UserError
from experiments.search.distributions import Choice, Distribution, in_optuna
from experiments.search.plan import Plan
from experiments.search.space import Space

KEPT = 0.25  # of a round's trials, those that the next round closes in on; never fewer than two


class Streams(BaseSampler):
    """Random search (Bergstra & Bengio 2012): each parameter has a stream of its own."""

    def __init__(self, plan: Plan, space: Space):
        self.seed, self.space = plan.seed, space

    def uniform(self, name: str, number: int) -> float:
        """The number in [0, 1) that decides parameter `name` of trial `number`."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), number]).random()

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, _: Any) -> Any:
        """Optuna's question for the value of one parameter."""
        parameter = self.space.parameters[name]
        return in_optuna(parameter.at(self.uniform(name, trial.number)))

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict:
        """Nothing is drawn jointly."""
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, space: dict) -> dict:
        """Nothing is drawn jointly."""
        return {}


class QuasiRandom(Streams):
    """Points of a scrambled Sobol sequence, which leave no large gaps; one axis a parameter."""

    def uniform(self, name: str, number: int) -> float:
        axis = list(self.space.parameters).index(name)
        return float(_sobol(len(self.space.parameters), self.seed, number)[axis])


class Narrow(Streams):
    """Random search in rounds: each round's ranges span the best trials of the round before.

    A range is closed in on its own scale, so on a logarithmic one for learning rates, with a margin
    of half the mean distance between the trials that are kept. Of a list, the values among the
    best trials remain.
    """

    def __init__(self, plan: Plan, space: Space, finished: Sequence[FrozenTrial]):
        super().__init__(plan, space)
        self.length = math.ceil(plan.n_trials / plan.rounds)
        self.finished = finished
        self.sign = 1 if plan.goal == "minimize" else -1

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, _: Any) -> Any:
        parameter = self.space.parameters[name]
        u = self.uniform(name, trial.number)
        values = self.best_values(name, trial.number // self.length - 1)
        if not values:
            return in_optuna(parameter.at(u))
        if isinstance(parameter, Choice):
            kept = [v for v in map(in_optuna, parameter.values) if v in values]
            return Choice(tuple(kept)).at(u)
        low, high = self.range(parameter, values)
        return parameter.at(low + u * (high - low))

    def best_values(self, name: str, round_: int) -> list:
        """The values of a parameter in the best trials of a round; empty before the first."""
        first = round_ * self.length
        trials = [t for t in self.finished if first <= t.number < first + self.length]
        ranked = sorted(trials, key=lambda t: self.sign * t.value)  # type: ignore[operator]
        kept = ranked[: max(2, math.ceil(KEPT * len(ranked)))]
        return [t.params[name] for t in kept if name in t.params]

    def range(self, parameter: Any, values: Sequence[float]) -> tuple[float, float]:
        """The quantiles between which the next round draws."""
        positions = [parameter.position(value) for value in values]
        low, high = min(positions), max(positions)
        margin = (high - low) / (2 * max(len(positions) - 1, 1))
        return max(low - margin, 0.0), min(high + margin, 1.0)


@functools.lru_cache(maxsize=8)
def _sobol_block(axes: int, seed: int, block: int) -> np.ndarray:
    from scipy.stats import qmc

    engine = qmc.Sobol(axes, scramble=True, rng=np.random.default_rng(seed))
    if block:
        engine.fast_forward(block * 256)
    return engine.random(256)


def _sobol(axes: int, seed: int, number: int) -> np.ndarray:
    return _sobol_block(axes, seed, number // 256)[number % 256]


def may_start(plan: Plan, trials: Sequence[FrozenTrial], number: int) -> bool:
    """Whether what trial `number` depends on is known: for `narrow`, the round before its own."""
    if plan.method != "narrow":
        return True
    length = math.ceil(plan.n_trials / plan.rounds)
    return all(trial.state.is_finished() for trial in trials[: number // length * length])


def sampler(plan: Plan, space: Space, trials: Sequence[FrozenTrial], number: int) -> BaseSampler:
    """What draws the values of trial `number`, given all trials so far."""
    if plan.method in ("random", "grid"):
        return Streams(plan, space)
    if plan.method == "quasi_random":
        return QuasiRandom(plan, space)
    if plan.method == "narrow":
        finished = [t for t in trials if t.state == TrialState.COMPLETE]
        return Narrow(plan, space, finished)
    seed = zlib.crc32(f"{plan.seed}/{number}".encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if plan.method == "bayes":
            # joint, and apart for each set of conditional parameters; trials under way count as bad
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        if plan.method == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


def check_method(plan: Plan) -> None:
    """Raises `UserError` where a method cannot work on this machine."""
    needs = {"gp": ("torch", "PyTorch"), "cmaes": ("cmaes", "the package cmaes")}
    package, name = needs.get(plan.method, (None, ""))
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"method={plan.method} needs {name}: pip install {package}; method=bayes does without"
        )
    pruner(plan)


def pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """What ends trials early: asynchronous successive halving (ASHA, Li et al. 2020).

    At `min_iter`, `min_iter·eta`, `min_iter·eta²`, ... epochs a trial goes on only among the best
    1/eta of those that came as far; with `max_iter` and `s`, at max_iter/eta^s and so on.
    """
    settings = plan.early_terminate
    if settings is None:
        return optuna.pruners.NopPruner()
    known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    for key in settings:
        if key not in known:
            raise UserError(f"early_terminate.{key}: there is no such key")
    if settings.get("type") != "hyperband":
        raise UserError("early_terminate.type must be hyperband")
    numbers = {
        key: settings[key] for key in ("min_iter", "max_iter", "s", "eta") if key in settings
    }
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 + (key == "eta"):
            raise UserError(
                f"early_terminate.{key}={value}: must be a whole number from 1 (eta: 2)"
            )
    eta = numbers.get("eta", 3)
    if "min_iter" in numbers:
        first = numbers["min_iter"]
    elif "max_iter" in numbers and "s" in numbers:
        first = max(1, round(numbers["max_iter"] / eta ** numbers["s"]))
    else:
        raise UserError("early_terminate needs min_iter, or max_iter and s")
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=eta)


def suggest(trial: optuna.Trial, name: str, parameter: Distribution) -> Any:
    """The value of a parameter in a trial; the one it has if it has one."""
    wanted = parameter.optuna
    if isinstance(wanted, optuna.distributions.CategoricalDistribution):
        value: Any = trial.suggest_categorical(name, wanted.choices)
    elif isinstance(wanted, optuna.distributions.IntDistribution):
        value = trial.suggest_int(name, wanted.low, wanted.high)
    else:
        assert isinstance(wanted, optuna.distributions.FloatDistribution)
        value = trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log)
    return parameter.finish(value)
