"""Sweep files as W&B takes them: nested parameters, a command, and what the engines differ in."""

from pathlib import Path

import pytest
import yaml

from experiments.errors import UserError
from experiments.search.agents import begin, differences
from experiments.search.plan import plan_of_file
from experiments.search.readers import read_sweep_file
from support import ROOT

NESTED = """
program: run.py
method: random
run_cap: 2
parameters:
  model:
    value: mlp
  optim:
    parameters:
      learning_rate: {min: 0.001, max: 0.1, distribution: log_uniform_values}
      b1: {values: [0.8, 0.9]}
  trainer:
    parameters:
      epochs: {value: 1}
"""
COMMAND = ["${env}", "${interpreter}", "${program}", "trainer.log_every=4", "${args_no_hyphens}"]


def written(folder: Path, text: str, **more) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text + (yaml.safe_dump(more) if more else ""))
    return path


def test_nested_parameters_are_those_of_dotted_names(tmp_path):
    file = read_sweep_file(written(tmp_path, NESTED))
    names = ["model", "optim.learning_rate", "optim.b1", "trainer.epochs"]
    assert list(file.content["parameters"]) == names
    plan = plan_of_file(file, [], {}, ROOT / "conf")
    assert plan.parameters["optim.b1"] == {"values": [0.8, 0.9]}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.001, max", "0.2, max", "sweep.yaml:10: optim.learning_rate: min=0.2 must be less"),
        ("b1", "bb1", "sweep.yaml:11: optim.bb1"),
        ("  trainer:", "  optim.b1: {value: 0.5}\n  trainer:", "sweep.yaml:12: optim.b1 is given"),
    ],
)
def test_a_mistake_in_nested_parameters_is_said_with_its_line(tmp_path, old, new, said):
    path = written(tmp_path, NESTED.replace(old, new))
    with pytest.raises(UserError) as refused:
        plan_of_file(read_sweep_file(path), [], {}, ROOT / "conf")
    assert said in str(refused.value)


def test_the_command_gives_overrides_to_each_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SEED", "7")
    command = [*COMMAND, "seed=${envvar:MY_SEED}"]
    file = read_sweep_file(written(tmp_path, NESTED, command=command))
    plan = plan_of_file(file, ["trainer.log_every=8"], {}, ROOT / "conf")
    said = ["trainer.log_every=4", "seed=7", "trainer.log_every=8"]  # the last one counts
    assert plan.overrides[: len(said)] == said
    assert plan.seed == 7


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("nohup", "'nohup' is not for this program"),
        ("--config-dir=mine", "'--config-dir=mine' is not for this program"),
        ("seed=${envvar:NOT_THERE}", "the environment has no NOT_THERE"),
        ("allow=[os]", "only a command line can say allow"),
        ("+callbacks.x._target_=os.system", "may not name this"),
        ("+callbacks={x: {_target_: os.system}}", "may not name this"),
        ("seed=[", "command: "),
    ],
)
def test_a_command_that_cannot_be_followed_is_refused(tmp_path, part, said):
    path = written(tmp_path, NESTED, command=[*COMMAND, part])
    with pytest.raises(UserError) as refused:
        read_sweep_file(path)
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_engines_say_where_they_differ(tmp_path):
    assert list(differences({"method": "grid"})) == []
    said = list(differences({"method": "bayes", "run_cap": 3, "early_terminate": {"min_iter": 1}}))
    assert [line.split()[0] for line in said] == ["bayes", "hyperband"]
    path = written(tmp_path, NESTED.replace("random", "gp"))
    with pytest.raises(UserError, match="method=gp: W&B has grid, random, bayes"):
        begin(path, [], {}, ROOT / "conf", tmp_path / "study")
    assert not (tmp_path / "study").exists()
