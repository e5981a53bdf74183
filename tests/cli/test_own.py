"""Code and config files of the user's own, in a folder outside of the repository."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.cli.own import with_own
from experiments.cli.sweep import sweep
from experiments.core import trust
from experiments.core.names import locate
from experiments.errors import UserError
from experiments.machine import called
from experiments.search import agents
from experiments.search.actions import own_configs, trust_files_of
from experiments.search.plan import Plan, plan_of_file, read_plan
from experiments.search.readers import read_sweep_file
from experiments.search.slurm import Task, read_cluster
from experiments.search.study import Study, create_study, state_of
from support import ROOT

CONFIGS = {
    "model": "_target_: mine.Wide\nwidth: 8",
    "loss": "_target_: mine.sharpened\n_partial_: true\nsharpness: 2.0",
    "optim": "defaults: [_shared, _self_]\nrule: mine.signs\nlearning_rate: 0.01\ndecay: 0.9",
    "schedule": "_target_: mine.halved\nunit: epochs\nevery: 2",
    "metrics": "off_by_one: {_target_: mine.off_by_one}",
    "callbacks": "epochs: {_target_: mine.Epochs}",
    "data": "_target_: mine.Dice\nrolls: 60\nseeds: seeds.txt\nbatch_size: 20\neval_batch_size: 60",
}
"""The files `conf/<group>/mine.yaml`: all that a config is made of can be the user's own."""

CHOICES = [*(f"{group}=mine" for group in CONFIGS), "logger=none", "trainer.figures=false"]

CODE = """
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import Callback
from experiments.core.schedules import schedule
from experiments.data.dataset import Arrays, Spec, Splits, as_stored
from experiments.models.layers import Dense, flatten
from experiments.objectives.losses import loss
from experiments.types import Positive, PositiveInt


class Wide(nnx.Module):
    def __init__(self, *, width: PositiveInt, input_shape, num_classes, kernel_init, rngs):
        self.hidden = Dense(math.prod(input_shape), width, kernel_init=kernel_init, rngs=rngs)
        self.output = Dense(width, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        return self.output(jax.nn.relu(self.hidden(flatten(x))))


@loss(takes="logits", head="softmax")
def sharpened(outputs, targets, *, sharpness: Positive):
    return -jnp.sum(targets * jax.nn.log_softmax(sharpness * outputs), axis=-1)


def signs(decay: float):
    return optax.scale_by_lion(decay, decay)


@schedule
def halved(t, total, *, every: Positive):
    return 0.5 ** jnp.floor(t / every)


def off_by_one(probabilities, batch):
    return jnp.abs(jnp.argmax(probabilities, axis=-1) - batch["label"]) <= 1


class Epochs(Callback):
    def on_epoch_end(self, step, weights, metrics, predictions):
        with Path("epochs.txt").open("a") as file:
            print(metrics["val/off_by_one"], file=file)


@dataclass(frozen=True, kw_only=True)
class Dice:
    rolls: PositiveInt
    seeds: str
    batch_size: PositiveInt | Literal[-1]
    eval_batch_size: PositiveInt | Literal[-1]
    pipeline = staticmethod(as_stored)

    @property
    def spec(self):
        stored = {"sequence": ((2,), "float32"), "label": ((), "int32")}
        return Spec(input_shape=(2,), num_classes=11, stored=stored)

    def load(self):
        draws = np.random.default_rng(int(Path(self.seeds).read_text()))
        rolls = draws.integers(1, 7, (3 * self.rolls, 2))
        labels = (rolls.sum(1) - 2).astype("int32")
        every = Arrays({"sequence": rolls.astype("float32"), "label": labels})
        parts = (every.take(rows) for rows in np.split(np.arange(len(every)), 3))
        return Splits(*parts, class_names=tuple(map(str, range(2, 13))), fingerprint=repr(self))
"""
SWEEP = """
program: run.py
run_cap: 1
metric: {name: val/loss, goal: minimize}
parameters:
  model.width: {values: [4]}
  optim.learning_rate: {distribution: log_uniform_values, min: 1.0e-3, max: 0.1}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a user's, the working directory."""
    folder = tmp_path / "own"
    for group, text in CONFIGS.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "mine.yaml").write_text(text)
    (folder / "mine.py").write_text(CODE)
    (folder / "seeds.txt").write_text("7")  # a path in a config is relative to the folder
    (folder / "my.yaml").write_text(SWEEP)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield folder
    sys.modules.pop("mine", None)
    trust.allow([ROOT / "conf"], [])


@pytest.mark.slow
def test_a_run_of_ones_own_code_goes_on_and_is_used(run_cli, own):
    run, other = own / "run", own / "other"

    def call(*arguments: str, folder: Path = other) -> None:
        code, error = run_cli(*arguments, folder=folder, folders=False)
        assert code == 0, error

    (own / "conf" / "local").mkdir()
    (own / "conf" / "local" / "default.yaml").write_text("# @package _global_\nseed: 3\n")
    call(*CHOICES, "trainer.epochs=2", folder=run)
    call(f"resume={run}", "trainer.epochs=3", folder=run)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 9
    seen = (own / "epochs.txt").read_text().split()
    assert len(seen) == 3
    assert float(seen[-1]) == summary["val/off_by_one"]
    assert summary["parameters"] == 2 * 8 + 8 + 8 * 11 + 11
    config = (run / ".hydra" / "config.yaml").read_text()
    assert "\nseed: 3\n" in config
    call("mode=evaluate", f"checkpoint={run}")
    evaluated = json.loads((other / "evaluations" / "best.json").read_text())
    assert evaluated["test/loss"] == pytest.approx(summary["test/loss"], rel=1e-5)
    call("mode=predict", f"checkpoint={run}")
    call("mode=export", f"checkpoint={run}")
    assert {"predictions.csv", "model.stablehlo"} <= {path.name for path in other.iterdir()}


@pytest.mark.slow
def test_a_study_of_ones_own_code_works_from_anywhere(own, tmp_path, monkeypatch):
    """Its workers find code and paths where it was begun; trust is said again by the user."""
    flags = with_own([])
    assert flags == [f"--config-dir={own}/conf"]
    trust.allow([ROOT / "conf", own / "conf"], [])
    study, options = own / "study", {"config_dir": f"{own}/conf"}
    overrides = [*CHOICES, "trainer.epochs=1"]
    plan = plan_of_file(read_sweep_file(Path("my.yaml")), overrides, options, ROOT / "conf")
    create_study(plan, study, ROOT / "conf")
    assert read_plan(study).directory == str(own)
    monkeypatch.chdir(tmp_path)
    # another folder, whose files name code of the same name, is not taken for the study's
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "x.yaml").write_text(CONFIGS["model"])
    trust.allow([ROOT / "conf", tmp_path / "conf"], [])
    trust_files_of(plan.config_dir, ROOT / "conf", {"config_dir": f"{tmp_path}/conf"})
    before = (study / "study.yaml").read_bytes()
    with pytest.raises(UserError) as refused:
        sweep([f"resume={study}", "n_trials=9"], ROOT / "conf")
    assert (study / "study.yaml").read_bytes() == before
    first, second = str(refused.value).splitlines()
    assert "_target_=mine." in first
    assert f"--config-dir={own}/conf" in second
    sweep(["resume=own/study", *flags], ROOT / "conf")
    done = Study(study, ROOT / "conf")
    assert [state_of(trial) for trial in done.trials()] == ["finished"]
    assert f"{called('run')} --config-dir={own}/conf" in (study / "best.txt").read_text()


def test_a_study_that_goes_on_elsewhere_keeps_its_config_files(own, tmp_path, monkeypatch):
    begun = Plan("x", {}, [], "val/loss", "minimize", 1, config_dir=f"{own}/conf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (found,) = (flag.partition("=")[2] for flag in with_own([]))
    assert own_configs(begun, found) == own_configs(begun, None) == f"{own}/conf"
    assert own_configs(begun, "named") == "named"
    assert own_configs(dataclasses.replace(begun, config_dir=None), found) is None
    (own / "conf").rename(tmp_path / "moved")
    assert own_configs(begun, found) == found


@pytest.mark.parametrize(
    ("code", "target", "message"),
    [
        ("class Wide: ...", "mine.Wyde", "'mine.Wyde' does not exist: .* did you mean 'Wide'"),
        ("class Wide: ...", "mien.Wide", "names no importable module; did you mean 'mine'"),
        ("class Wide: ...", "theirs.Wide", "there is no theirs.py in {own}"),
        ("\n\nx = 1 / 0", "mine.Wide", "{own}/mine.py:3: ZeroDivisionError"),
        ("import math\ndef f(:", "mine.Wide", "{own}/mine.py:2: invalid syntax"),
        ("import nothing_such", "mine.Wide", "{own}/mine.py:1: .* No module named 'nothing_such'"),
        ("\nimport jax\njax.numpy.ones(-1)", "mine.Wide", "{own}/mine.py:3: "),
    ],
)
def test_what_is_wrong_with_ones_own_code_is_one_line(own, code, target, message):
    with_own([])
    (own / "mine.py").write_text(code)
    with pytest.raises(UserError, match=message.format(own=own)) as error:
        locate(target)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_has_the_name_of_a_library_is_named(own):
    with_own([])
    (own / "code.py").write_text("class Net: ...")
    with pytest.raises(UserError, match=f"'code.Net' does not exist: .*; {own}/code.py is hidden"):
        locate("code.Net")


def test_code_beside_the_config_files_comes_before_that_of_the_working_directory(own, monkeypatch):
    (own / "empty").mkdir()
    monkeypatch.chdir(own / "empty")
    assert with_own(["--config-dir=../conf"]) == [f"--config-dir={own}/conf"]
    assert sys.path[-2:] == [str(own), str(own / "empty")]


def test_config_files_that_are_not_read_are_named(own, capsys):
    (own / "conf" / "model" / "mlp.yaml").write_text("width: 1")
    assert with_own(["seed=1", "-cd", "conf", "seed=2"])[:2] == ["seed=1", "seed=2"]
    assert f"{own}/conf/model/mlp.yaml is not read: Experiments has" in capsys.readouterr().err


def test_the_folder_of_a_run_is_no_folder_of_ones_own(own, monkeypatch, capsys):
    """What is in it may have been sent, with code and config files that name the code."""
    for kind, file in (("run", ".hydra/config.yaml"), ("study", "study.yaml")):
        sent = own / kind
        (sent / file).parent.mkdir(parents=True)
        (sent / file).write_text("name: x")
        (sent / "inside" / "conf").mkdir(parents=True)
        monkeypatch.chdir(sent / "inside")
        assert with_own(["seed=1"]) == ["seed=1"]
        assert str(sent / "inside") not in sys.path
        assert f"{sent} holds a run or a study" in capsys.readouterr().err


def test_a_config_that_was_sent_may_name_what_ones_own_files_name_and_no_other_code(own):
    (own / "helper.py").write_text("def run(): ...")
    with_own([])
    trust.allow([ROOT / "conf", own / "conf"], [])
    trust.vet_objects({"model": {"_target_": "mine.Wide"}}, "R")
    with pytest.raises(UserError, match=r"helper.run: .* allow=\[helper\]"):
        trust.vet({"model": {"_target_": "helper.run"}}, "R")
    assert "helper" not in sys.modules


def test_the_repositorys_own_config_files_are_no_folder_beside_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert with_own(["seed=1"]) == ["seed=1"]
    assert called("sweep") == "python sweep.py"


def test_a_cluster_can_be_a_file_of_ones_own(own):
    (own / "conf" / "cluster").mkdir()
    text = (ROOT / "conf" / "cluster" / "slurm.yaml").read_text()
    (own / "conf" / "cluster" / "lab.yaml").write_text(text.replace("time: 240", "time: 17"))
    with pytest.raises(UserError, match="cluster=lab: must be one of local, slurm"):
        read_cluster(ROOT / "conf", {"name": "lab"})
    trust.allow([ROOT / "conf", own / "conf"], [])
    cluster = read_cluster(ROOT / "conf", {"name": "lab"})
    assert cluster is not None
    assert cluster.time == 17


def test_jobs_and_agents_start_where_the_study_was_begun(own, tmp_path, monkeypatch):
    job, began = SimpleNamespace(num_tasks=1, global_rank=0, job_id="1"), []
    monkeypatch.setattr("experiments.search.slurm.JobEnvironment", lambda: job)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    task = Task(["touch", "here"])
    monkeypatch.chdir(tmp_path)
    task()
    assert (own / "here").exists()
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.setattr("os.execv", lambda _, command: began.append((os.getcwd(), command)))
    agents.trial(tmp_path, own, ["--config-dir=x", "seed=1"])
    ((where, command),) = began
    assert where == str(own)
    assert command[-3:] == ["--config-dir=x", "seed=1", f"hydra.run.dir={tmp_path}/abc"]
