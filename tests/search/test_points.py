"""Values that are decided before a study begins: no combination twice, and points to start from."""

import pytest

from experiments.errors import UserError
from experiments.search import points
from experiments.search.configs import Configs
from experiments.search.plan import plan_of_arguments
from experiments.search.readers import read_space
from experiments.search.results import write_results
from support import ROOT

CONFIG = ROOT / "conf"
LISTS = {
    "model.hidden": {"values": [[8], [8, 8], [16]]},
    "optim": {"values": ["adam", "momentum"]},
    "optim.momentum": {"values": [0.8, 0.9]},
}
MIXED = {
    "model.hidden": {"values": [[8], [8, 8]]},
    "freeze": {"values": [None, ["output"]]},
    "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1},
    "data.batch_size": {"distribution": "q_uniform", "min": 10, "max": 60, "q": 32},
}


def drawn(study) -> list[dict]:
    """Return the values of all trials that have not begun."""
    return [trial.values for trial in study.claim(100)]


def test_random_search_over_lists_draws_no_combination_twice(make_study, tmp_path):
    study = make_study(tmp_path / "grid", parameters=LISTS, method="grid", n_trials=9)
    grid = drawn(study)
    whole = drawn(make_study(tmp_path / "whole", parameters=LISTS, n_trials=9))
    assert whole != grid
    assert sorted(map(str, whole)) == sorted(map(str, grid)) == sorted(set(map(str, grid)))
    part = drawn(make_study(tmp_path / "part", parameters=LISTS, n_trials=4))
    assert part == whole[:4]  # so that a larger budget goes on where a smaller one ended
    assert drawn(make_study(tmp_path / "other", parameters=LISTS, n_trials=9, seed=1)) != whole


def test_weighted_lists_are_drawn_by_their_weights(make_study):
    weighted = {"optim.b1": {"values": [0.8, 0.9], "probabilities": [0.9, 0.1]}}
    values = [v["optim.b1"] for v in drawn(make_study(parameters=weighted, n_trials=40))]
    assert values.count(0.8) > 25


def test_a_budget_beyond_all_combinations_is_cut(caplog):
    plan = plan_of_arguments(["seed=1,2", "optim=adam,sgd"], {"n_trials": 9}, CONFIG)
    assert plan.n_trials == 4
    assert "there are 4 combinations" in caplog.text


def test_points_come_first_and_the_rest_is_drawn(make_study, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(
        "trial,model.hidden,freeze,optim.learning_rate,data.batch_size\n"
        '7,"[8, 8]",null,0.01,64\n'
        '8,,"[output]",,0\n'
    )
    found = points.read(str(path), read_space(MIXED, Configs(CONFIG)))
    study = make_study(tmp_path / "study", parameters=MIXED, points=found)
    first, second, *others = drawn(study)
    assert first == {
        "model.hidden": [8, 8],
        "freeze": None,
        "optim.learning_rate": 0.01,
        "data.batch_size": 64,
    }
    assert (second["freeze"], second["data.batch_size"]) == (["output"], 0)
    assert 1e-4 <= second["optim.learning_rate"] <= 0.1
    assert len(others) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.learning_rate\n1.0\n", "points.csv:2: optim.learning_rate=1.0: 1.0 is not among"),
        ("model.hidden\n[4]\n", "points.csv:2: model.hidden=[4]: [4] is not among"),
        ("optim.lr\n0.01\n", "optim.lr: this is not searched; did you mean 'optim.learning_rate'"),
        ("freeze,model.hidden\nnull\n", "points.csv:2: not as many values as the header"),
    ],
)
def test_points_that_are_not_in_the_space_are_named(tmp_path, text, words):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        points.read(str(path), read_space(MIXED, Configs(CONFIG)))
    assert words in str(error.value)


def test_a_search_starts_from_the_best_trials_of_another(make_study, tmp_path, caplog):
    old = make_study(tmp_path / "old", parameters=MIXED, n_trials=4)
    for trial in old.claim(3):
        old.finish(trial, "finished", [trial.values["optim.learning_rate"]])
    write_results(old)
    ranked = [trial.user_attrs["values"]["optim.learning_rate"] for trial in old.ranked()]
    narrower = f"optim.learning_rate=interval(1e-4,{ranked[1]})"  # without the best one's
    plan = plan_of_arguments(
        [narrower, "seed=1,2"], {"n_trials": 5, "from": str(tmp_path / "old")}, CONFIG
    )
    assert [point["optim.learning_rate"] for point in plan.points] == ranked[1:]
    assert f"trial {old.ranked()[0].number} of {tmp_path / 'old'} is left out" in caplog.text
