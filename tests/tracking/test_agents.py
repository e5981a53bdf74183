"""Sweeps by W&B's own agents: `wandb sweep`, then `wandb agent`, on the stand-in server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from experiments.errors import UserError
from experiments.processes import gpus
from experiments.search import agents
from experiments.search.agents import begin
from support import ROOT
from wandb_server.sweeps import Sweep

WANDB = Path(sys.executable).with_name("wandb")
QUICK = {"data": "digits", "debug": "fast", "logger": "wandb"}
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def registered(server, folder: Path, sweep: dict, data_home: list[str], **fixed) -> Sweep:
    """Registers a sweep of `run.py` with `fixed` values besides its own."""
    sweep["program"] = str(ROOT / "run.py")
    where = {"hydra.run.dir": f"{folder}/${{oc.env:WANDB_RUN_ID}}"}
    fixed |= dict(override.split("=", 1) for override in data_home) | where
    sweep["parameters"] |= {key: {"value": value} for key, value in fixed.items()}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    command = [WANDB, "sweep", "--project", "digits", path]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    (made,) = server.sweeps.values()
    return made


def agent(sweep: Sweep, folder: Path, count: int) -> str:
    """Runs an agent for `count` runs; what it said."""
    name = f"{sweep.entity}/{sweep.project}/{sweep.id}"
    command = [WANDB, "agent", "--count", str(count), name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_ran(server, sweep: Sweep, said: str, count: int) -> None:
    assert list(server.runs) == sweep.runs, said  # each once, under the sweep's own name for it
    assert len(sweep.runs) == count
    for run in server.runs.values():
        assert (run.sweep, run.exit_code) == (sweep.id, 0), said
        assert run.metrics
    drawn = [name for name, p in sweep.config["parameters"].items() if "value" not in p]
    for name in drawn:
        if "." in name:  # a value, not the choice of a group
            assert len({str(run.config[name]) for run in server.runs.values()}) > 1 or count == 1


@pytest.mark.slow
def test_an_agent_runs_what_the_sweep_draws(server, tmp_path, data_home):
    sweep = {
        "method": "random",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {
            "optim": {"value": "adamw"},
            "optim.learning_rate": {
                "distribution": "log_uniform_values",
                "min": 1.0e-5,
                "max": 1.0e-2,
            },
            "model.hidden": {"values": ["[8]", "[12,8]"]},
        },
        "command": ["${env}", sys.executable, "${program}", "${args_no_hyphens}"],
    }
    made = registered(server, tmp_path, sweep, data_home, **QUICK)
    assert_ran(server, made, agent(made, tmp_path, 2), 2)
    for run in server.runs.values():
        assert run.config["optim.rule"] == "optax.scale_by_adam"  # `optim` is what was drawn
        assert 1e-5 <= run.config["optim.learning_rate"] <= 1e-2
        assert run.summary["val/accuracy"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_file_is_one_for_agents(server, tmp_path, data_home, path):
    sweep = yaml.safe_load(path.read_text())
    sweep["command"] = [sys.executable if part == "python" else part for part in sweep["command"]]
    made = registered(server, tmp_path, sweep, data_home, **QUICK)
    assert_ran(server, made, agent(made, tmp_path, 2), 2)


@pytest.mark.slow
def test_early_termination_stops_a_run_cleanly(server, tmp_path, data_home):
    sweep = {
        "method": "random",
        "parameters": {"optim.learning_rate": {"min": 0.001, "max": 0.002}},
        "command": ["${env}", sys.executable, "${program}", "${args_no_hyphens}"],
    }
    options = {"model.hidden": "[8]", "trainer.epochs": 1000000, "logger": "wandb"}
    made = registered(server, tmp_path, sweep, data_home, **options)
    made.stop = lambda run: any("val/loss" in row for row in run.history)
    agent(made, tmp_path, 1)
    (run,) = server.runs.values()
    assert run.summary["status"] == "interrupted"
    assert run.exit_code is not None
    assert any((tmp_path / run.id / "checkpoints").iterdir())


@pytest.mark.slow
def test_wandb_as_the_engine_goes_on_with_a_preempted_run(server, tmp_path, data_home):
    path = tmp_path / "search.yaml"
    rate = {"distribution": "log_uniform_values", "min": 1.0e-5, "max": 1.0e-2}
    sweep = {"program": "run.py", "method": "random", "run_cap": 1}
    sweep |= {"metric": {"name": "val/accuracy", "goal": "maximize"}}
    path.write_text(yaml.safe_dump(sweep | {"parameters": {"optim.learning_rate": rate}}))
    study = tmp_path / "study"
    options = ["model.hidden=[8]", "trainer.figures=false", "trainer.epochs=100000"]
    command = [sys.executable, "sweep.py", str(path), "engine=wandb", f"study={study}", *options]
    with subprocess.Popen([*command, *data_home], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if any(run.history for run in server.runs.values()):
                break
            time.sleep(0.2)
        (run,) = server.runs.values()
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        assert process.wait(timeout=120) == 75
    assert run.summary["status"] == "interrupted"
    assert run.preempting
    first = next(study.glob("*/metrics.jsonl")).parent
    config, epoch = first / ".hydra" / "config.yaml", run.metrics[-1]["epoch"]
    left = config.read_text().replace("epochs: 100000", f"epochs: {int(epoch) + 3}")
    config.write_text(left)
    (made,) = server.sweeps.values()
    agent(made, study, 1)
    assert list(server.runs.values()) == [run]
    assert run.summary["status"] in ("finished", "stopped_early")
    assert json.loads((first / "summary.json").read_text())["status"] == run.summary["status"]
    steps = [event["step"] for event in run.metrics]
    assert steps == sorted(set(steps))


def test_without_an_account_no_folder_is_made(client, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("method: grid\nparameters: {seed: {values: [0, 1]}}\n")
    with pytest.raises(UserError, match="engine=wandb needs an account: wandb login"):
        begin(path, [], {}, ROOT / "conf", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_agents_share_the_gpus_and_their_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    for name in gpus.MEMORY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(agents, "register", lambda *_: "entity/project/sweep")
    started = []
    usual = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(
        agents.subprocess,
        "Popen",
        lambda *_, env, **__: started.append(env) or SimpleNamespace(wait=int),
    )
    begin(SWEEPS[0], [], {"workers": 3}, ROOT / "conf", tmp_path / "study")
    signal.signal(signal.SIGINT, usual)
    shares = [(env["CUDA_VISIBLE_DEVICES"], env[gpus.MEMORY[0]]) for env in started]
    assert shares == [("0", "0.450"), ("1", "0.450"), ("0", "0.450")]
