"""Sweepers and launchers of Hydra's own, in the place of a study."""

import datetime
import json
import math
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.cli import run
from experiments.cli.sweep import study_folder
from support import ROOT

TINY = [
    "model.hidden=[8]",
    "data.limit=64",
    "trainer.epochs=1",
    "trainer.figures=false",
    "data.batch_size=16",
]


@pytest.fixture
def returned(monkeypatch) -> list:
    """What runs return to the sweeper that has them started."""
    found: list = []
    original = run.run_one

    def run_one(config):
        found.append(original(config))
        return found[-1]

    monkeypatch.setattr(run, "run_one", run_one)
    return found


def test_a_sweeper_of_hydra_gets_the_metrics_of_its_runs(run_cli, returned, tmp_path):
    """One that diverges has none, and ends nothing."""
    runs = ["-m", "hydra/sweeper=basic", "optim=sgd", "optim.learning_rate=1e30,0.1", "logger=none"]
    both = "metric=[val/loss,parameters]"
    assert run_cli(*runs, *TINY, both, f"hydra.sweep.dir={tmp_path}/many")[0] == 0
    diverged, finished = returned
    assert all(map(math.isnan, diverged))
    summary = json.loads((tmp_path / "many" / "1" / "summary.json").read_text())
    assert finished == [summary["best"]["val/loss"], 610]
    assert not any(name.startswith("test/") for name in summary)  # it is compared, and may lose
    config = yaml.safe_load((tmp_path / "many" / "1" / ".hydra" / "config.yaml").read_text())
    assert config["optim"]["learning_rate"] == 0.1


@pytest.mark.slow
def test_a_launcher_alone_starts_the_runs_of_the_basic_sweeper(run_cli, returned, tmp_path):
    where = f"hydra.sweep.dir={tmp_path}/many"
    assert run_cli("-m", "hydra/launcher=basic", "seed=1", "logger=none", *TINY, where)[0] == 0
    summary = json.loads((tmp_path / "many" / "0" / "summary.json").read_text())
    assert returned == [summary["best"]["val/accuracy"]]
    code, error = run_cli("-m", "hydra/launcher=basic", "seed=-1", *TINY, where)
    assert code == 2
    assert "error: seed=-1: must be at least 0" in error


def test_folders_may_be_named_as_hydra_names_them():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["folders=hydra"], return_hydra_config=True)
    today = f"{datetime.date.today()}/"
    assert config.hydra.run.dir.startswith(f"outputs/{today}")
    assert config.hydra.sweep.dir.startswith(f"multirun/{today}")
    folder = study_folder({}, ["folders=hydra"], "mine")
    assert folder.parent == Path.cwd() / "multirun" / str(datetime.date.today())
