"""What a search goes by, and what ends trials early, as a command line says it."""

import optuna
import pytest

from experiments.errors import UserError
from experiments.search import methods
from experiments.search.plan import plan_of_arguments, plan_of_file, read_plan
from experiments.search.readers import read_sweep_file
from support import ROOT

CONFIG = ROOT / "conf"
FILE = """run_cap: 4
metric: {name: val/loss, goal: minimize}
early_terminate: {type: hyperband, min_iter: 2, eta: 2}
parameters: {optim.learning_rate: {min: 0.001, max: 0.1}}
"""


def plan(**options):
    return plan_of_arguments(["seed=range(8)"], options, CONFIG)


def test_a_command_line_says_metric_and_goal(tmp_path):
    found = plan(metric="val/macro_f1")
    assert (found.metric, found.goal) == (["val/macro_f1"], ["maximize"])
    assert found.overrides == ["trainer.monitor=macro_f1", "trainer.monitor_mode=max"]
    found = plan(metric=["parameters", "val/loss"])
    assert found.goal == ["minimize", "minimize"]
    assert found.overrides[0] == "trainer.monitor=loss"
    assert plan(goal="minimize").metric == ["val/accuracy"]
    (tmp_path / "x.yaml").write_text(FILE)
    options = {"metric": "val/accuracy", "early_terminate": {"min_epochs": 3}}
    found = plan_of_file(read_sweep_file(tmp_path / "x.yaml"), [], options, CONFIG)
    assert (found.metric, found.goal) == (["val/accuracy"], ["maximize"])  # not the file's goal
    del options["metric"]
    options["early_terminate"] = {"type": "none"}
    found = plan_of_file(read_sweep_file(tmp_path / "x.yaml"), [], options, CONFIG)
    assert (found.metric, found.early_terminate) == (["val/loss"], None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "val/acc"}, "metric=val/acc: its trials have no such metric"),
        ({"metric": "test/accuracy"}, "metric=test/accuracy: the validation split decides"),
        ({"metric": "parameters"}, "metric=parameters: name a metric once, and one of val/"),
        ({"metric": "val/calibration_error", "goal": "min"}, "goal=min: must be one of"),
        ({"metric": ["val/loss", "seconds"], "side_by_side": 2}, "share their time"),
        ({"metric": ["val/loss", "parameters"], "goal": "minimize"}, "there are 2 metrics"),
        (
            {"metric": ["val/loss", "parameters"], "method": "narrow", "n_trials": 4},
            "method=narrow narrows around one best trial",
        ),
        (
            {"metric": ["val/loss", "parameters"], "method": "cmaes", "n_trials": 4},
            "method=cmaes follows one metric",
        ),
        (
            {"metric": ["val/loss", "parameters"], "early_terminate": {"type": "median"}},
            "early_terminate= goes by one metric",
        ),
        ({"early_terminate": {"type": "medain"}}, "must be none, or one of hyperband, median"),
        ({"early_terminate": {"max_iter": 9}}, "needs min_epochs, or max_iter and s"),
    ],
)
def test_goals_that_no_search_has_end_in_one_line(options, words):
    with pytest.raises(UserError) as error:
        plan(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_median_prunes_after_its_first_epochs():
    found = plan(early_terminate={"type": "median", "min_epochs": 3})
    study = optuna.create_study(pruner=methods.pruner(found), direction="maximize")
    for _ in range(5):  # before, nothing is known to be usual
        good = study.ask()
        for epoch in range(1, 5):
            good.report(0.9, epoch)
            assert not good.should_prune()
        study.tell(good, 0.9)
    bad = study.ask()
    pruned = []
    for epoch in range(1, 5):
        bad.report(0.1, epoch)
        pruned.append(bad.should_prune())
    assert pruned == [False, False, True, True]


def test_several_metrics_have_a_front(make_study):
    study = make_study(
        metric=["val/accuracy", "parameters"], goal=["maximize", "minimize"], method="bayes"
    )
    values = [[0.9, 100], [0.8, 50], [0.7, 80], [0.9, 100]]
    for each in values:
        (trial,) = study.claim(1)
        study.finish(trial, "finished", each)
    assert [trial.number for trial in study.ranked()] == [0, 3, 1]
    assert {t.number for t in study.ranked()} == {t.number for t in study.optuna.best_trials}
    assert study.best() is None
    assert study.optuna.metric_names == ["val/accuracy", "parameters"]


def test_a_study_of_an_older_version_has_one_metric(make_study):
    study = make_study(n_trials=1)
    path = study.folder / "study.yaml"
    text = path.read_text().replace("metric:\n- val/accuracy", "metric: val/accuracy")
    path.write_text(text.replace("goal:\n- maximize", "goal: maximize"))
    assert "metric: val/accuracy" in path.read_text()
    assert read_plan(study.folder).metric == ["val/accuracy"]
    assert read_plan(study.folder).goal == ["maximize"]
