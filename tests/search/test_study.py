"""Studies of older versions, and the screen."""

import io
import os
import re

import pytest
import yaml
from rich.console import Console

from experiments.cli.sweep import sweep
from experiments.errors import UserError
from experiments.search.actions import resume, status
from experiments.search.plan import Plan
from experiments.search.results import command, ending, screen
from experiments.search.shared.overviews import Overviews, line_of
from experiments.search.study import Study, create_study, state_of
from experiments.search.worker import work
from support import ROOT


def test_trials_without_their_study_are_not_those_of_a_new_one(tmp_path):
    (tmp_path / "trials" / "0").mkdir(parents=True)
    plan = Plan("new", {}, [], "val/loss", "minimize", 1)
    with pytest.raises(UserError, match=r"holds trials without study\.yaml"):
        create_study(plan, tmp_path, ROOT / "conf")


def test_a_study_of_before_its_key_was_renamed_can_be_resumed(make_study):
    study = make_study(side_by_side=3)
    path = study.folder / "study.yaml"
    fields = yaml.safe_load(path.read_text())
    fields["lanes"] = fields.pop("side_by_side")
    path.write_text(yaml.safe_dump(fields))
    assert Study(study.folder, ROOT / "conf").plan == study.plan


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("overrides", ["optim.rule=os.system"], "allow=[os]"),
        ("overrides", ["name=${oc.env:HOME}"], "may not read this"),
        ("overrides", ["hydra.searchpath=[pkg://antigravity]"], "changes nothing of Hydra"),
        ("parameters", {"optim.rule": {"values": ["optax.adam", "os.system"]}}, "allow=[os]"),
        ("cluster", {"name": "slurm", "setup": ["touch ran"]}, "say it again: cluster.setup="),
    ],
)
def test_a_study_of_others_runs_nothing(make_study, field, value, words):
    study = make_study()
    path = study.folder / "study.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=re.escape(words)):
        sweep([f"resume={study.folder}"], ROOT / "conf")
    if field != "cluster":
        with pytest.raises(UserError, match=re.escape(words)):
            work(study.folder, ROOT / "conf")
    assert {state_of(trial) for trial in study.trials()} == {"waiting"}


def test_the_screen_has_a_row_per_worker_that_lives(make_study):
    study = make_study()
    now = {"step": 40, "total_steps": 100, "epoch": 2.0, "trials": 128, "diverged": 3}
    now |= {"examples_per_second": 1e5, "val/accuracy": 0.9123}
    for study.worker in ("here", "dead"):
        Overviews(study).write(now)
    (study.folder / "workers" / "torn.json").write_text("{")
    os.utime(study.folder / "workers" / "dead.json", (0, 0))
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(study))
    shown = console.file.getvalue()
    assert "here" in shown
    assert "dead" not in shown
    for part in ("128", "40/100", "best val/accuracy 0.9123", "3", "100,000"):
        assert part in shown


@pytest.mark.parametrize(
    ("seeds", "runs", "said"), [(1, 1, "1 trial "), (1, 8, "8 trials "), (16, 16, "16 seeds ")]
)
def test_a_line_about_a_worker_names_what_it_trains(make_study, seeds, runs, said):
    plan = make_study(seeds=seeds).plan
    now = {"step": 40, "total_steps": 100, "epoch": 2.0, "trials": runs}
    assert line_of(now, plan) == f"{said} step 40/100  epoch 2.00"


def test_the_value_of_a_trial_with_seeds_is_called_their_median(make_study):
    study = make_study(n_trials=1, seeds=3)
    (trial,) = study.claim(1)
    study.finish(trial, "finished", [0.9], seconds=1.0)
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(study))
    assert "median" in console.file.getvalue()
    assert "trial 0: median val/accuracy 0.9" in ending(study)


def test_a_study_without_workers_says_how_to_go_on(make_study, capsys):
    study = make_study()
    status(study.folder, ROOT / "conf", {})
    assert "no worker is alive; go on with" in capsys.readouterr().out
    claim = study.claims.take("0", None, study.claims.now())
    status(study.folder, ROOT / "conf", {})
    assert "no worker is alive" not in capsys.readouterr().out
    study.claims.release(claim)
    assert not study.claims.alive


def test_seeds_are_replicates_of_a_setting_and_not_ranked(make_study):
    parameters = {"optim": {"values": ["adam", "sgd"]}, "seed": {"values": [3, 4]}}
    study = make_study(n_trials=4, parameters=parameters, method="grid")
    for trial, value in zip(study.claim(4), (0.99, 0.60, 0.90, 0.92), strict=True):
        study.finish(trial, "finished", [value], seconds=1.0)
    best = study.best()
    assert [trial.number for trial in study.ranked()] == [3, 2, 0, 1]  # sgd by its mean
    assert [trial.number for trial in study.replicates(best)] == [3, 2]
    # all choices are compared, so that each is tested; the best trial comes last
    assert [trial.number for trial in study.tested(best)] == [2, 0, 1, 3]
    assert command(study, best).endswith("optim=sgd seed=3,4 side_by_side=1")


def test_what_diverged_is_told_from_what_failed(make_study, monkeypatch, capsys):
    study = make_study(n_trials=3)
    ends = ("diverged", "diverged at step 2"), ("failed", "out of memory"), ("finished", None)
    for trial, (state, reason) in zip(study.claim(3), ends, strict=True):
        study.finish(trial, state, [0.5] if reason is None else None, reason=reason)
    lines = ending(study).splitlines()
    assert "failed      1x out of memory" in lines
    assert "diverged    1x at step 2" in lines
    monkeypatch.setattr("experiments.search.actions.launch", lambda *_: None)
    resume(study.folder, ROOT / "conf", {"retry": "failed"})
    assert "1 failed trials run again, as new ones; left out: 1 that div" in capsys.readouterr().out
    assert [state_of(trial) for trial in study.trials()] == ["diverged", "waiting", "finished"]


def test_without_seeds_the_winner_alone_is_tested(make_study):
    parameters = {"optim": {"values": ["adam", "sgd"]}}
    study = make_study(n_trials=2, parameters=parameters, method="grid")
    for trial in study.claim(2):
        study.finish(trial, "finished", [trial.number / 10], seconds=1.0)
    assert [trial.number for trial in study.tested(study.best())] == [1]
