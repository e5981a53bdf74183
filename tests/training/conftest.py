"""Fixtures of trainings: runs by themselves, and trials of one static configuration."""

import copy

import pytest

from experiments.machine import StopRequest
from experiments.tracking.jsonl import read_history
from experiments.tracking.tracker import Tracker
from experiments.training.loop import fit
from experiments.training.setup import Setups
from support import SMALL, composed, trial_of


@pytest.fixture
def train(tmp_path, data_home, setups):
    """A run in a folder of its own: (summary, metrics.jsonl).

    What runs of a file have in common is read, traced and compiled once.
    """

    def call(*overrides, folder="run", resume=False, trackers=(), stop=None):
        directory = tmp_path / folder
        plain = ["trainer.checkpoints=false"] if not resume else []
        config = composed(*data_home, *SMALL, *plain, *overrides)
        trial = trial_of(config, directory, *trackers, stop=stop, setups=setups)
        (summary,) = fit([trial], directory, resume=resume)
        return summary, read_history(directory / "metrics.jsonl")

    return call


class StopAfter(Tracker):
    """Asks a trial to stop once it has seen a step."""

    may_stop = True

    def __init__(self, stop, step, status):
        self.stop, self.step, self.stop.status = stop, step, status

    def log(self, step, scalars):
        if step >= self.step:
            self.stop.name = "SIGTERM"


@pytest.fixture(scope="module")
def base(data_home):
    return composed(
        *data_home,
        "model.hidden=[16]",
        "model.dropout=0.1",
        "data.batch_size=256",
        "trainer.epochs=4",
        "trainer.log_every=2",
        "trainer.figures=false",
        "trainer.checkpoint_every=null",
        'trainer.compilation_cache=""',
        "logger=none",
    )


@pytest.fixture(scope="module")
def setups():
    return Setups()


@pytest.fixture
def trial(base, setups, tmp_path):
    """A trial at a learning rate; `stop` is (step, status), `trainer` changes some keys."""

    def make(rate, name, folder=None, stop=None, trainer=None, **values):
        config = copy.deepcopy(base) | values
        config["optim"]["learning_rate"] = rate
        config["trainer"] |= trainer or {}
        config["name"] = name
        request = StopRequest()
        watching = [] if stop is None else [StopAfter(request, *stop)]
        directory = (folder or tmp_path) / name
        return trial_of(config, directory, *watching, stop=request, setups=setups)

    return make
