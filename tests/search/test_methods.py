"""Each method of a search, without training: the values of trials are made up."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from experiments.search import methods
from experiments.search.plan import Plan
from experiments.search.space import Parameter, Space

TWO = {
    "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1.0},
    "optim": {"values": ["adam", "momentum"]},
    "optim.b1": {"min": 0.5, "max": 0.99},
}


def search(study, value) -> list[dict]:
    """Run a whole study on a function of the values; return the values of each trial."""
    drawn = []
    while trials := study.claim(1):
        drawn.append(trials[0].values)
        study.finish(trials[0], "finished", [value(trials[0].values)])
    assert study.complete
    return drawn


def distance(values: dict) -> float:
    """Return minus the distance to a learning rate of 1e-3, in decades."""
    return -abs(math.log10(values["optim.learning_rate"]) + 3)


@pytest.mark.parametrize("method", ["random", "quasi_random", "narrow", "bayes", "cmaes"])
def test_methods_stay_in_the_space_and_repeat_themselves(make_study, tmp_path, method):
    first, second = (
        search(make_study(tmp_path / name, parameters=TWO, n_trials=12, method=method), distance)
        for name in "ab"
    )
    assert first == second
    for values in first:
        assert 1e-6 <= values["optim.learning_rate"] <= 1
        assert ("optim.b1" in values) == (values["optim"] == "adam")
    assert len({v["optim.learning_rate"] for v in first}) == 12


def test_another_seed_draws_other_values(make_study, tmp_path):
    first = search(make_study(tmp_path / "a", seed=0), distance)
    assert first != search(make_study(tmp_path / "b", seed=1), distance)


def test_a_further_parameter_changes_no_other_draws(make_study, tmp_path):
    one = {"optim.learning_rate": TWO["optim.learning_rate"]}
    rates = [
        [
            v["optim.learning_rate"]
            for v in search(make_study(tmp_path / name, parameters=p), distance)
        ]
        for name, p in (("a", one), ("b", TWO))
    ]
    assert rates[0] == rates[1]


def test_rounds_close_in_on_the_best(make_study):
    study = make_study(
        parameters={"optim.learning_rate": TWO["optim.learning_rate"]},
        n_trials=48,
        method="narrow",
        rounds=3,
    )
    logs = np.log10([v["optim.learning_rate"] for v in search(study, distance)])
    spans = [np.ptp(logs[i : i + 16]) for i in (0, 16, 32)]
    assert spans[0] > 4
    assert spans[1] < 0.6 * spans[0]
    assert spans[2] < 0.6 * spans[1]
    for first, width in ((16, 3.0), (32, 1.5)):  # decades, around the best of all before
        best = logs[np.argmin(abs(logs[:first] + 3))]
        assert 0.6 * width < np.ptp(logs[first : first + 16]) <= width
        assert abs(logs[first : first + 16] - best).max() <= 0.501 * width


def test_narrowing_finds_better_values_than_random_search_with_the_same_budget():
    log = FloatDistribution(1e-6, 1.0, log=True)
    space = Space({name: Parameter(log) for name in ("rate", "decay")}, None)

    def least_loss(method: str, seed: int) -> float:
        plan = Plan("", {}, [], ["val/loss"], ["minimize"], 24, method=method, seed=seed)
        study, best = optuna.create_study(), np.random.default_rng(seed).uniform(-6, 0)
        for number in range(plan.n_trials):
            study.sampler = methods.sampler(plan, space, study.trials, number)
            trial = study.ask()
            rate, decay = (
                math.log10(methods.suggest(trial, n, p)) for n, p in space.parameters.items()
            )
            too_large = 3.0 if rate > best + 0.5 else 0.0  # beyond it a training diverges
            study.tell(trial, abs(rate - best) + 0.1 * abs(decay + 4) + too_large)
        return study.best_value

    random, narrow = ([least_loss(m, seed) for seed in range(10)] for m in ("random", "narrow"))
    assert np.mean(narrow) < 0.8 * np.mean(random)
    assert np.greater_equal(random, narrow).sum() >= 5


def test_a_round_waits_for_the_one_before(make_study):
    study = make_study(n_trials=6, method="narrow", rounds=3)
    first = study.claim(6)
    assert [trial.number for trial in first] == [0, 1]
    study.finish(first[0], "finished", [0.5])
    assert study.claim(6) == []
    study.finish(first[1], "finished", [0.5])
    assert [trial.number for trial in study.claim(6)] == [2, 3]


def test_a_grid_is_every_combination_once(make_study):
    grid = {"optim": {"values": ["adam", "momentum"]}, "optim.b1": {"values": [0.8, 0.9]}}
    study = make_study(parameters=grid, method="grid", n_trials=3)
    assert search(study, lambda _: 0.0) == list(study.space.grid(None))


def test_a_grid_over_ranges_is_as_fine_as_the_budget(make_study):
    space = dict.fromkeys(("optim.learning_rate", "optim.eps"), TWO["optim.learning_rate"])
    study = make_study(parameters=space, method="grid", n_trials=16)
    assert len(drawn := search(study, distance)) == 16
    for name in space:
        assert sorted({values[name] for values in drawn}) == [1e-6, 1e-4, 1e-2, 1.0]


def test_quasi_random_draws_leave_no_gap(make_study):
    rate = {"optim.learning_rate": TWO["optim.learning_rate"]}
    study = make_study(parameters=rate, method="quasi_random", n_trials=16)
    logs = [math.log10(v["optim.learning_rate"]) for v in search(study, distance)]
    assert sorted(int((x + 6) / 6 * 16) for x in logs) == list(range(16))  # one in each cell


def test_bayes_beats_random_on_a_smooth_function(make_study, tmp_path):
    best = {}
    for method in ("random", "bayes"):
        rate = {"optim.learning_rate": TWO["optim.learning_rate"]}
        study = make_study(tmp_path / method, parameters=rate, n_trials=40, method=method)
        found = [distance(v) for v in search(study, distance)]
        best[method] = np.mean(found[20:])
    assert best["bayes"] > best["random"] + 0.3


def test_hyperband_stops_the_worse_two_thirds_at_each_rung(make_study):
    study = make_study(n_trials=18, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3})
    lasted = {}
    for number in range(18):
        (trial,) = study.claim(1)
        for epoch in range(1, 10):
            trial.optuna.report(-number, epoch)  # each trial is worse than the ones before
            if trial.optuna.should_prune():
                study.finish(trial, "pruned", [-number])
                break
        else:
            study.finish(trial, "finished", [-number])
        lasted[number] = epoch
    assert lasted[0] == 9
    assert np.mean([epochs == 1 for epochs in lasted.values()]) > 0.6
    states = [trial.state for trial in study.trials()]
    assert states.count(TrialState.COMPLETE) >= 1
    assert states.count(TrialState.PRUNED) > 10


@pytest.mark.parametrize(
    ("settings", "first"),
    [({"min_iter": 3}, 3), ({"max_iter": 27, "s": 2}, 3), ({"max_iter": 16, "s": 2, "eta": 2}, 4)],
)
def test_the_rungs_are_those_of_w_and_b(settings, first):
    plan = Plan("", {}, [], ["val/loss"], ["minimize"], 1)
    early = {"type": "hyperband", **settings}
    pruner = methods.pruner(Plan(**{**plan.__dict__, "early_terminate": early}))
    study = optuna.create_study(pruner=pruner)
    trial = study.ask()
    for step in range(1, first):
        trial.report(1.0, step)
        assert not trial.should_prune()
