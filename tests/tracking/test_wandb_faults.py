"""Without a server, a client or an account: a run loses nothing of its record."""

import os
import subprocess
import sys
import time

import pytest

from experiments.tracking import wandb as tracking
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.tracker import Trackers
from experiments.tracking.wandb import Wandb
from support import children_of
from wandb_server import reader
from wandb_server.server import serve
from wandb_server.trainings import recorded, said, steps, train


def test_server_that_was_never_there(client, monkeypatch, run_info, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "START_TIMEOUT", 1.0)
    run = run_info()
    began = time.monotonic()
    train(run)
    assert time.monotonic() - began < 10
    assert "W&B did not take this run, it goes on offline" in caplog.text
    (path,) = [p for p in reader.find(run.directory) if "offline" in str(p)]
    assert reader.read(path).metrics == recorded(run)
    assert len(recorded(run)) == 40


def test_server_that_dies(client, monkeypatch, run_info, caplog):
    run = run_info()
    trackers = Trackers([JsonLines(), Wandb("digits", finish_timeout=1.0)])
    with serve() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        trackers.start(run)
        for step, event in steps(1, 20):
            trackers.log(step, event)
    for step, event in steps(21, 40):
        trackers.log(step, event)
    began = time.monotonic()
    trackers.finish({}, "finished")
    assert time.monotonic() - began < 8
    (path,) = reader.find(run.directory)
    assert (
        "W&B did not take everything within 1 s; "
        f"send it later: wandb sync --include-online {path.parent}" in (said(caplog))
    )
    assert reader.read(path).metrics == recorded(run)
    assert len(recorded(run)) == 40


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_client_that_dies_costs_a_warning(client, run_info, caplog):
    run = run_info()
    trackers = Trackers([JsonLines(), Wandb("digits", mode="offline")])
    trackers.start(run)
    wandb_core = children_of(os.getpid())
    for pid in wandb_core:
        os.kill(pid, 9)
    for step, event in steps(1, 40):
        trackers.log(step, event)
    trackers.finish({}, "finished")
    assert wandb_core
    assert len(recorded(run)) == 40
    assert sum("Wandb is dropped" in message for message in said(caplog)) == 1
    train(run_info(), last=1, mode="offline")  # the next run of this process is sound again
    assert reader.read(reader.find(run.directory)[-1]).exit_code == 0


def test_without_an_api_key_a_run_stays_offline(client, run_info, caplog):
    run = run_info()
    train(run, last=1)
    assert not said(caplog)
    assert len(reader.find(run.directory)) == 1


def test_online_without_an_api_key_warns_and_never_asks(client, run_info, caplog, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    train(run_info(), last=1, mode="online")
    assert said(caplog) == ["W&B stays offline: no API key is configured (wandb login)"]


def test_malformed_api_key(client, run_info, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    train(run_info(), last=1)
    (message,) = said(caplog)
    assert message.startswith("W&B stays offline: WANDB_API_KEY invalid")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_disabled_run_imports_nothing(run_info, tmp_path, how):
    mode = "mode='disabled'" if how == "argument" else ""
    code = f"""
import sys
from pathlib import Path
from experiments.tracking.tracker import RunInfo
from experiments.tracking.wandb import Wandb
tracker = Wandb("p", {mode})
tracker.start(RunInfo(Path({str(tmp_path)!r}), "n", {{}}, 1, 1, 1, 1))
tracker.log(1, {{"a": 1.0}})
tracker.finish({{}}, "finished")
assert not {{"wandb", "matplotlib"}} & set(sys.modules)
"""
    environment = {**os.environ, "WANDB_MODE": "disabled"} if not mode else os.environ
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not (tmp_path / "wandb").exists()
