"""Programs that an earlier run has compiled: a later one trains with them untraced, bit for bit."""

import logging

import jax
import numpy as np
import pytest

from experiments.core.experiment import Experiment
from experiments.core.new_weights import NewWeights
from experiments.tracking.jsonl import JsonLines, read_history
from experiments.tracking.tracker import Trackers
from experiments.training.loop import fit
from experiments.training.ready import FOLDER, ReadyPrograms
from experiments.training.session import open_session
from experiments.training.signals import StopRequest
from support import composed, timeless

SMALL = ["model.hidden=[12]", "trainer.epochs=2", "trainer.figures=false"]


@pytest.fixture
def train(own_cache, tmp_path, data_home):
    def call(folder, *overrides):
        (tmp_path / folder).mkdir()
        session = open_session(
            composed(*data_home, *SMALL, "trainer.checkpoints=false", *overrides)
        )
        fit(session, tmp_path / folder, Trackers([JsonLines()]), StopRequest())
        return timeless(read_history(tmp_path / folder / "metrics.jsonl"))

    return call


def forbid_tracing(monkeypatch):
    def never(*_, **__):
        raise AssertionError("traced again")

    for function in ("train_step", "eval_step"):
        monkeypatch.setattr(Experiment, function, never)
    monkeypatch.setattr(NewWeights, "_sampled", never)


@pytest.mark.core
def test_a_later_run_traces_nothing_and_gives_the_same_numbers(train, monkeypatch):
    first = train("first", "seed=3")

    forbid_tracing(monkeypatch)
    assert train("again", "seed=3") == first
    # a hyperparameter is an input of the programs
    other = train("other", "seed=3", "optim.learning_rate=0.01")
    assert other[0]["learning_rate"] == pytest.approx(0.01)
    with pytest.raises(AssertionError, match="traced again"):
        train("wider", "model.hidden=[13]")


def test_programs_that_only_jax_has_kept_are_kept_by_the_second_run_that_asks(
    train, own_cache, monkeypatch
):
    first = train("first")
    for path in (own_cache / FOLDER).iterdir():  # as if it had been stopped early
        path.unlink()
    assert train("second") == first
    assert any((own_cache / FOLDER).glob("*.asked"))
    assert train("third") == first
    forbid_tracing(monkeypatch)
    assert train("fourth") == first


def test_a_damaged_program_is_compiled_again(train, own_cache, caplog):
    first = train("first")
    for path in (own_cache / FOLDER).iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert train("again") == first
    assert "cannot be used, it is compiled again" in caplog.text


def test_programs_follow_from_statistics_of_the_data_and_from_known_code(own_cache):
    def names(config, made_from):
        ready = ReadyPrograms(config, made_from, jax.devices())
        return ready.folder and ready._path("train").name

    ours = {"model": {"_target_": "experiments.models.mlp.MLP"}}
    assert names(ours, np.ones(3)) == names(ours, np.ones(3))
    assert names(ours, np.ones(3)) != names(ours, np.zeros(3))
    assert names({"model": {"_target_": "somebody.elses.Model"}}, np.ones(3)) is None


def test_programs_with_a_hyperparameter_as_a_constant_are_not_kept(train, own_cache, monkeypatch):
    step = Experiment.train_step

    def picky(self, state, batch, hparams, key, measured=True):
        float(hparams.get("optim.learning_rate", 0))  # needs its value
        return step(self, state, batch, hparams, key, measured)

    monkeypatch.setattr(Experiment, "train_step", picky)
    slow, quick = train("slow", "optim.learning_rate=1e-5"), train("quick")
    assert slow[1]["train/loss"] > quick[1]["train/loss"]
    assert not list((own_cache / FOLDER).glob("train-*"))
