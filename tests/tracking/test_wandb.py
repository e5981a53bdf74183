"""What W&B gets of runs by its real client, offline and with a stand-in for its server."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from experiments.tracking.jsonl import JsonLines
from experiments.tracking.log_file import LOG
from experiments.tracking.tracker import Trackers
from experiments.tracking.wandb import Wandb
from wandb_server import reader
from wandb_server.trainings import recorded, said, steps, train


def picture(folder):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    figure.savefig(folder / "picture.png")
    return folder / "picture.png"


def test_offline_history_is_the_record_line_for_line(client, run_info):
    run = run_info()
    trackers = Trackers([JsonLines(), Wandb("digits", group="seeds", tags=["a"], mode="offline")])
    trackers.start(run)
    folders = f"{run.directory}/wandb/offline-run-*"
    assert trackers.location == f'for run in {folders}; do wandb sync "$run"; done'
    for step, event in steps(1, 40):
        trackers.log(step, event)
    trackers.log(41, {"train/loss": math.inf})
    trackers.finish({"test/accuracy": 0.9, "best": {"epoch": 4.0}}, "stopped_early")

    (path,) = reader.find(run.directory)
    offline = reader.read(path)
    assert offline.metrics == recorded(run)
    assert {key: value for key, value in offline.config.items() if key != "_wandb"} == {
        "optim": {"learning_rate": 1e-3},
        "seed": 0,
        "run": {"parameters": 2410, "total_steps": 40, "steps_per_epoch": 10, "batch_size": 32},
    }
    assert (offline.project, offline.group, offline.tags) == ("digits", "seeds", ["a"])
    assert offline.name == "mlp_digits_ab12cd"
    own = {k: v for k, v in offline.summary.items() if not k.startswith("_")}
    last = {"epoch": 4.0, "learning_rate": 1e-3, "val/loss": 2.5 / 40, "val/accuracy": 1 - 1 / 40}
    given = {"test/accuracy": 0.9, "best.epoch": 4.0, "status": "stopped_early"}
    assert own == last | {"train/loss": math.inf} | given
    assert offline.exit_code == 0
    assert "WANDB_SERVICE" not in os.environ  # the client process has ended


@pytest.mark.parametrize("trials", [3, pytest.param(64, marks=pytest.mark.slow)])
def test_several_runs_at_once_stay_apart(client, run_info, tmp_path, trials):
    runs = [run_info(directory=tmp_path / f"trial{i}", name=f"trial{i}") for i in range(trials)]
    trackers = []
    for run in runs:
        run.directory.mkdir()
        trackers.append(Trackers([JsonLines(), Wandb("digits", group="study", mode="offline")]))
        trackers[-1].start(run)
    for step, event in steps(1, 10):
        for trial, tracker in enumerate(trackers):
            tracker.log(step, event | {"train/loss": float(trial)})
    for tracker in trackers:
        tracker.finish({}, "finished")
    for run in runs:
        offline = reader.read(*reader.find(run.directory))
        assert (offline.name, offline.group) == (run.name, "study")
        assert offline.metrics == recorded(run)


def test_offline_run_resumes_without_repeats(client, run_info):
    train(run_info(), last=25, status="interrupted", mode="offline")
    run = run_info(start_step=20)
    train(run, first=21, mode="offline")
    first, second = map(reader.read, reader.find(run.directory))
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.id == second.id
    assert first.metrics + second.metrics == recorded(run)


def test_a_run_stopped_before_its_first_step_goes_on_as_the_same_run(client, run_info):
    train(run_info(), last=0, status="interrupted", mode="offline")
    run = run_info(start_step=0)
    train(run, first=1, mode="offline")
    first, second = map(reader.read, reader.find(run.directory))
    assert first.id == second.id
    assert first.metrics + second.metrics == recorded(run)


def test_online_run_arrives(server, run_info, caplog):
    run = run_info()
    checkpoint = run.directory / "checkpoint"
    (checkpoint / "params").mkdir(parents=True)
    (checkpoint / "params" / "data").write_bytes(b"weights")
    tracker = Wandb("digits", entity="team", notes="why", job_type="train", log_model=True)
    trackers = Trackers([JsonLines(), tracker])
    with caplog.at_level(logging.INFO, "experiments"):
        trackers.start(run)
    for step, event in steps(1, 40):
        trackers.log(step, event)
    trackers.figure(40, "test/confusion_matrix", picture(run.directory))
    trackers.histogram(40, "outputs", np.array([3, 1]), np.array([-1.0, 0.0, 1.0]))
    trackers.model(checkpoint)
    trackers.finish({"test/accuracy": 0.9}, "finished")

    (arrived,) = server.runs.values()
    assert said(caplog) == [f"W&B: {server.url}/team/digits/runs/{arrived.id}"]
    assert (arrived.name, arrived.notes, arrived.job_type) == (run.name, "why", "train")
    assert arrived.config["optim"] == {"learning_rate": 1e-3}
    image = arrived.metrics[-1].pop("test/confusion_matrix")
    histogram = arrived.metrics[-1].pop("outputs")
    assert (histogram["values"], histogram["bins"]) == ([3, 1], [-1, 0, 1])
    *metrics, last = arrived.metrics
    assert last.pop("test/confusion_matrix") == image
    assert last.pop("outputs") == histogram
    assert [*metrics, last] == recorded(run)
    assert arrived.files[image["path"]].startswith(b"\x89PNG")
    assert arrived.summary["test/accuracy"] == 0.9
    assert arrived.summary["val/loss"] == 2.5 / 40
    assert arrived.exit_code == 0
    (model,) = server.artifacts.values()
    assert (model.type, model.state, model.files) == ("model", "COMMITTED", ["params/data"])
    assert sorted(model.aliases) == ["best", "latest"]


def test_what_a_sweep_searches_for_keeps_its_flat_name(server, run_info, tmp_path, monkeypatch):
    drawn = tmp_path / "drawn.yaml"  # as an agent names it
    values = {"optim": "adamw", "model.dropout": 0.5}
    drawn.write_text(yaml.safe_dump({name: {"value": value} for name, value in values.items()}))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(drawn))
    config = {"optim": {"learning_rate": 1e-3}, "model": {"dropout": 0.5}}
    train(run_info(config=config), last=1)
    (run,) = server.runs.values()
    assert run.config["model"] == {"dropout": 0.5}
    assert {name: run.config[name] for name in values} == values
    assert run.config["optim.learning_rate"] == 1e-3  # below a name that is taken


def test_the_log_of_a_run_is_in_its_logs_tab(server, run_info):
    logging.root.setLevel(logging.INFO)
    run = run_info()
    (run.directory / LOG).write_text("[then] INFO experiments.data: what was said before\n")
    trackers = Trackers([JsonLines(), Wandb("digits")])
    trackers.start(run)
    logging.getLogger("experiments.training").warning("postgresql://me:secret@host is slow")
    trackers.finish({}, "finished")
    logging.getLogger("experiments.training").warning("of the next run")
    (arrived,) = server.runs.values()
    first, *_, last = [text for _, text in sorted(arrived.logs.items())]
    assert "what was said before" in first
    assert "postgresql://me:***@host is slow" in last


@pytest.mark.parametrize(
    ("alert", "status", "count"),
    [(True, "diverged", 1), (True, "failed", 1), (True, "finished", 0), (False, "failed", 0)],
)
def test_an_alert_says_that_a_run_failed(server, run_info, alert, status, count):
    train(run_info(), last=3, status=status, alert=alert)
    assert len(server.alerts) == count
    for sent in server.alerts:
        assert status in sent["title"]
        assert sent["severity"] == "ERROR"


def test_predictions_are_a_table_and_charts(server, run_info):
    trackers = Trackers([JsonLines(), Wandb("digits")])
    trackers.start(run_info())
    label = np.array(["cat", "dog", "dog", "cat"])
    cat = np.array([0.9, 0.8, 0.1, 0.6])
    columns = {"label": label, "predicted": np.where(cat > 0.5, "cat", "dog")}
    columns |= {"p_cat": cat, "p_dog": 1 - cat, "p_none": np.zeros(4)}
    trackers.predictions(1, "predictions/test", columns)
    trackers.predictions(1, "predictions/numbers", {"target": np.arange(3.0)})
    trackers.finish({}, "finished")
    (run,) = server.runs.values()

    def table(name: str) -> dict:
        return json.loads(run.files[run.history[-1][name]["path"]])

    shown = table("predictions/test")
    assert shown["columns"] == list(columns)
    assert shown["data"][1][:3] == ["dog", "cat", 0.8]
    assert table("predictions/numbers")["data"] == [[0.0], [1.0], [2.0]]
    counts = {
        tuple(row[:2]): row[2] for row in table("predictions/test_confusion_matrix_table")["data"]
    }
    assert counts["cat", "cat"] == 2
    assert counts["dog", "cat"] == counts["dog", "dog"] == 1
    points = table("predictions/test_pr_curve_table")["data"]
    cats = {recall: precision for name, precision, recall in points if name == "cat"}
    assert cats[0.5] == 1.0
    assert cats[1.0] == pytest.approx(2 / 3, abs=1e-3)
    assert {name for name, *_ in points} == {"cat", "dog"}  # no example is of the third
    charts = run.config["_wandb"]["visualize"]
    assert charts["predictions/test_confusion_matrix"]["panel_config"]["panelDefId"]


@pytest.mark.parametrize("status", ["interrupted", "diverged", "failed"])
def test_run_that_did_not_finish_is_marked_failed(server, run_info, status):
    train(run_info(), last=3, status=status)
    (run,) = server.runs.values()
    assert run.exit_code == 1
    assert run.summary["status"] == status


@pytest.mark.parametrize("lost", [0, 7])
def test_online_run_resumes_without_gaps_or_repeats(server, run_info, lost):
    train(run_info(), last=25, status="interrupted")
    (arrived,) = server.runs.values()
    del arrived.history[len(arrived.history) - lost :]  # was still on its way when the run died
    arrived.summary["_step"] = arrived.history[-1]["_step"]
    run = run_info(start_step=20)
    train(run, first=21)
    assert list(server.runs.values()) == [arrived]
    assert arrived.metrics == recorded(run)
    assert arrived.exit_code == 0


def test_offline_run_can_be_sent_later(server, run_info):
    run = run_info()
    train(run, last=25, status="interrupted", mode="offline")
    train(run_info(start_step=20), first=21, mode="offline")
    folders = sorted(run.directory.glob("wandb/offline-run-*"))
    command = [Path(sys.executable).with_name("wandb"), "sync", *folders]
    subprocess.run(command, check=True, timeout=30, cwd=run.directory, capture_output=True)
    (arrived,) = server.runs.values()
    assert arrived.metrics == recorded(run)
