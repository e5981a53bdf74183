"""Callbacks of the user's own see each epoch of their run, and end it only where they ask to."""

import csv
import json
import logging

import numpy as np
import pytest

from experiments.core.callback import Callback, StopTraining
from experiments.core.config import check_config
from experiments.core.params import merged
from experiments.core.transfer import named
from experiments.errors import UserError
from experiments.tracking.jsonl import read_history
from experiments.tracking.tracker import Trackers
from experiments.training.loop import fit
from experiments.training.saving.trials import load
from experiments.training.setup import Setups
from support import TINY, composed, trial_of

RATES = (1e-3, 1e-2, 0.1)


class Seen(Callback):
    """What a callback is told; it ends its run after `stop` epochs."""

    def __init__(self, stop=None):
        self.stop, self.epochs, self.status = stop, [], None

    def start(self, run):
        self.run = run

    def on_epoch_end(self, step, weights, metrics, predictions):
        labels = predictions.examples["label"]
        accuracy = float((predictions.outputs.argmax(axis=-1) == labels).mean())
        self.epochs.append((step, weights, metrics, accuracy))
        if len(self.epochs) == self.stop:
            raise StopTraining("seen enough")

    def finish(self, summary, status):
        self.status = status


class Failing(Callback):
    """Fails after an epoch."""

    def on_epoch_end(self, step, weights, metrics, predictions):
        raise ValueError("no more")


@pytest.fixture(scope="module")
def setups():
    return Setups()


@pytest.fixture
def trained(setups, data_home, tmp_path):
    """Trials, each with a learning rate and these callbacks, trained side by side."""

    def train(*callbacks):
        trials = []
        for rate, own in zip(RATES, callbacks, strict=False):
            config = composed(*TINY, *data_home, f"optim.learning_rate={rate}")
            trials.append(trial_of(config, tmp_path / f"{rate}", *own, setups=setups))
        fit(trials, tmp_path, width=len(trials), test=False)
        return trials

    return train


def check(trial, seen):
    """What a callback has seen is what its own trial has logged and saved."""
    assert seen.run.directory == trial.directory
    lines = [line for line in read_history(trial.directory / "metrics.jsonl") if "val/loss" in line]
    assert [{"step": step} | metrics for step, _, metrics, _ in seen.epochs] == lines
    for _, _, metrics, accuracy in seen.epochs:  # of the predictions
        assert accuracy == pytest.approx(metrics["val/accuracy"], rel=1e-6)
    shapes = trial.setup.shapes
    (saved,) = load([trial.directory], [(shapes, trial.setup.experiment.weights(shapes))])
    expected = named(merged(*trial.setup.experiment.weights(saved.state)))
    _, weights, _, _ = seen.epochs[-1]
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, expected[name])


def test_a_callback_sees_the_epochs_of_its_run(trained):
    (trial,) = trained([seen := Seen()])
    check(trial, seen)
    assert (len(seen.epochs), seen.status) == (3, "finished")


def test_trials_side_by_side_have_callbacks_of_their_own(trained, caplog):
    caplog.set_level(logging.INFO)
    every = [Seen(), Seen(stop=2), Seen()]
    trials = trained(every[:1], every[1:2], [Failing(), every[2]])
    for trial, seen in zip(trials, every, strict=True):
        check(trial, seen)
    assert [len(seen.epochs) for seen in every] == [3, 2, 3]
    assert [seen.status for seen in every] == ["finished", "stopped_early", "finished"]
    assert "stopping early: Seen: seen enough" in caplog.messages
    assert caplog.messages.count("Failing is dropped from this run: ValueError: no more") == 1


def test_weights_are_fetched_and_predictions_made_only_for_who_wants_them(trained, monkeypatch):
    monkeypatch.delattr("experiments.training.evaluation.Evaluator.outputs")
    monkeypatch.setattr("experiments.training.stack.fetch", None)
    (trial,) = trained([Callback()])
    assert trial.summary["status"] == "finished"


def test_an_essential_callback_that_fails_ends_the_run():
    class Essential(Failing):
        essential = True

    with pytest.raises(ValueError, match="no more"):
        Trackers([Essential()]).on_epoch_end(1, {}, {}, None)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("callbacks.mine=3", "callbacks.mine: must name a class"),
        ("callbacks.mine._target_=builtins.dict", "_target_=builtins.dict: it is no callback"),
        ("callbacks.mine._target_=optax.adam", "callbacks.mine: .* missing .* 'learning_rate'"),
        ("callbacks.mine._target_=mine.Watch", "'mine.Watch' names no importable module"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_runs(data_home, callback, message):
    with pytest.raises(UserError, match=message):
        check_config(composed(*TINY, *data_home, f"+{callback}"))


OUTSIDE = """
from experiments import Callback, StopTraining

class Watch(Callback):
    def __init__(self, stop_at):
        self.stop_at = stop_at

    def start(self, run):
        self.file = run.directory / "watched.txt"

    def on_epoch_end(self, step, weights, metrics, predictions):
        with self.file.open("a") as file:
            file.write(f"{step}\\n")
        if metrics["epoch"] == self.stop_at:
            raise StopTraining("asked to")

class Broken(Callback):
    def log(self, step, scalars):
        raise ValueError("a fault of its own")
"""


@pytest.mark.slow
def test_callbacks_from_outside_follow_a_run_and_its_resumption(run_cli, tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    run, own = tmp_path / "run", ["watch._target_=outside.Watch", "watch.stop_at=2"]
    own = [f"+callbacks.{one}" for one in [*own, "broken._target_=outside.Broken"]]
    code, errors = run_cli(*TINY, "callbacks=mistakes", *own)
    assert code == 0
    assert errors.count("Broken is dropped from this run: ValueError: a fault of its own") == 1
    assert "Traceback" not in errors
    assert 'raise ValueError("a fault of its own")' in (run / "run.log").read_text()
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped_early"
    with (run / "mistakes.csv").open() as file:
        mistakes = list(csv.DictReader(file))
    assert mistakes[0]["label"] != mistakes[0]["predicted"]
    order = [float(row["probability"]) for row in mistakes]
    assert order == sorted(order)

    code, errors = run_cli(f"resume={run}", folder=run)
    assert code == 2
    assert "if you trust it: allow=[outside]" in errors
    code, _ = run_cli(f"resume={run}", "allow=[outside]", "callbacks.watch.stop_at=0", folder=run)
    assert code == 0
    steps = [int(line) for line in (run / "watched.txt").read_text().splitlines()]
    assert steps == [
        line["step"] for line in read_history(run / "metrics.jsonl") if "val/loss" in line
    ]
    assert len(steps) == 3
