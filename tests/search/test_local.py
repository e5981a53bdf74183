"""Workers of this machine: what they import, what they share, and what they do not."""

import json
import subprocess
import sys

import pytest

from experiments.errors import UserError
from experiments.search import local
from experiments.search.actions import launch
from support import ROOT, leaves_no_child


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("experiments.cli.sweep", {"jax", "optuna", "hydra"}),  # workers start soon
        ("experiments.search.plan", {"jax"}),
        ("experiments.search.worker", {"hydra", "omegaconf"}),  # configs come from the launcher
    ],
)
def test_each_process_imports_what_it_needs(imported, absent):
    program = f"import {imported}, sys\nassert not {absent} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def python(program: str):
    """Return a function like `programs.command`, for a program that is this text."""
    return lambda _: [sys.executable, "-c", program]


def test_what_a_killed_worker_was_asked_for_is_done_here(monkeypatch):
    monkeypatch.setattr(local, "command", python("import os; os.kill(os.getpid(), 9)"))
    with local.standing_by({}) as workers:
        workers.running[0].wait()
        assert local.where_jax_is(len, "four") == 4


def test_a_worker_that_cannot_begin_is_told(monkeypatch):
    monkeypatch.setattr(local, "command", python("raise SystemExit(2)"))
    with (
        local.standing_by({}),
        pytest.raises(UserError, match="a worker ended as it started, exit code 2"),
    ):
        local.where_jax_is(len, "anything")


@pytest.mark.slow
def test_planning_takes_no_device():
    """The GPUs are for the workers: JAX would take most of their memory for the launcher."""
    program = f"""
import os, pathlib
os.environ["JAX_PLATFORMS"] = "none"
from experiments.core import trust
from experiments.search.plan import plan_of_arguments
folder = pathlib.Path({str(ROOT / "conf")!r})
trust.allow([folder], [])
space = ["model=lenet5,vgg16,alexnet,resnet20", "optim=adam,sgd", "loss=hinge"]
assert plan_of_arguments(space, {{}}, folder).n_trials == 8
space = ["model=vae", "seed=1,2", "trainer.monitor=kl"]  # a metric that is found by shapes
assert plan_of_arguments(space, {{}}, folder).metric == ["val/kl"]
import jax, pytest
with pytest.raises(RuntimeError):
    jax.devices()"""
    subprocess.run([sys.executable, "-c", program], check=True)


LAUNCH = """
import sys, time
from experiments.search.local import Process
process = Process(sys.argv[1:], 0, 1)
process.stdout.readline()
print("works", flush=True)
time.sleep(60)
"""
WORK = """
import time
from experiments.cli.main import command_line
command_line(lambda: print("works", flush=True) or time.sleep(60), hydra=False)
"""


def test_workers_end_with_a_killed_launcher():
    assert leaves_no_child(LAUNCH, *python(WORK)(""))


@pytest.mark.slow
def test_trials_share_no_run_of_wandb_that_the_environment_names(make_study, monkeypatch):
    """Its metrics would be those of all of them, mixed up."""
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    monkeypatch.setenv("WANDB_RESUME", "must")
    study = make_study(n_trials=2, overrides=["logger=wandb", "trainer.epochs=1"])
    launch(study, {}, local.Workers(1))
    states = [study.folder_of(number) / "wandb_run.json" for number in (0, 1)]
    ids = {json.loads(state.read_text())["id"] for state in states}
    assert len(ids) == 2
    assert "given" not in ids
    assert (
        "WANDB_RUN_ID=given is left aside" in next(study.folder.glob("workers/*.log")).read_text()
    )
