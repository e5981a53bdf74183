"""Read this first: one experiment from its command to its numbers.

`python run.py` composes a config, trains what it describes, and leaves a run folder that can be
resumed and evaluated. Every other test is about one of the things that happen here.
"""

import json

import pytest

from experiments.tracking.jsonl import read_history

# a real experiment, shrunk: a LeNet-5 on 512 of the digits that ship with the project
CONFIG = ["model=lenet5", "optim=adam", "optim.learning_rate=0.01", "data.limit=512"]
QUICK = ["trainer.log_every=4", "logger=none", "seed=3"]


@pytest.fixture
def run(run_cli, tmp_path):
    """Run `python run.py` with these arguments in a folder; return what it wrote there."""

    def call(*arguments, folder):
        code, errors = run_cli(*arguments, folder=tmp_path / folder)
        assert code == 0, errors
        summary = json.loads((tmp_path / folder / "summary.json").read_text())
        return summary, read_history(tmp_path / folder / "metrics.jsonl")

    return call


def test_a_run_is_trained_resumed_and_evaluated(run, tmp_path):
    whole, lines = run(*CONFIG, *QUICK, "trainer.epochs=6", folder="whole")
    assert whole["status"] == "finished"
    losses = [line["val/loss"] for line in lines if "val/loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert whole["best"]["val/accuracy"] > 0.8
    assert {path.name for path in (tmp_path / "whole").iterdir()} >= {
        *(".hydra", "metrics.jsonl", "summary.json", "checkpoints", "figures", "run.log")
    }

    # the same, but stopped after half of its epochs and then gone on with: the same numbers
    run(*CONFIG, *QUICK, "trainer.epochs=3", "trainer.figures=false", folder="parts")
    resumed, _ = run(f"resume={tmp_path / 'parts'}", "trainer.epochs=6", folder="parts")
    for name in ("step", "train/loss", "val/loss", "test/accuracy", "parameters"):
        assert resumed[name] == whole[name]

    # its best weights, from its folder alone, give the figures that were logged
    whole_run = tmp_path / "whole"
    run("mode=evaluate", f"checkpoint={whole_run}", folder="whole")
    evaluated = json.loads((whole_run / "evaluations" / "best.json").read_text())
    assert evaluated["test/accuracy"] == whole["test/accuracy"]
    assert evaluated["val/loss"] == whole["best"]["val/loss"]
