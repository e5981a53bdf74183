"""Runs of earlier versions: what CHANGELOG.md promises of their folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import load
from experiments.tracking.jsonl import METRICS, SUMMARY, read_history

RUNS = Path(__file__).parent / "runs"
VERSIONS = sorted(path.name for path in RUNS.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path):
    """A copy of the run of a version, of four epochs with four steps each."""
    return shutil.copytree(RUNS / request.param, tmp_path / "old")


def summary_of(folder):
    return json.loads((folder / SUMMARY).read_text())


@pytest.mark.core
def test_a_run_of_an_earlier_version_predicts_what_it_did(old):
    run, said = load(old), summary_of(old)
    test = run.splits.test.arrays
    _, names = run.predict(test["image"])
    assert np.mean(np.array(names, int) == test["label"]) == said["test/accuracy"]
    assert len(run.metrics) == len(read_history(old / METRICS))


@pytest.mark.core
def test_a_run_of_an_earlier_version_is_evaluated_as_it_was(run_cli, old, tmp_path):
    before = set(tmp_path.rglob("*.json"))
    code, errors = run_cli("mode=evaluate", f"checkpoint={old}", folder=tmp_path / "evaluated")
    assert code == 0, errors
    found = [json.loads(path.read_text()) for path in set(tmp_path.rglob("*.json")) - before]
    (evaluated,) = (values for values in found if "test/accuracy" in values)
    said = summary_of(old)
    assert evaluated["test/accuracy"] == said["test/accuracy"]
    assert evaluated["test/loss"] == pytest.approx(said["test/loss"], rel=1e-4)


@pytest.mark.core
def test_a_run_of_an_earlier_version_goes_on(run_cli, old):
    before = read_history(old / METRICS)[:5]  # the sixth is of the test
    code, errors = run_cli(f"resume={old}", "trainer.epochs=6", folder=old)
    assert code == 0, errors
    assert summary_of(old)["step"] == 24
    evaluated = {e["step"]: e["val/loss"] for e in read_history(old / METRICS) if "val/loss" in e}
    assert list(evaluated) == [4, 8, 12, 16, 20, 24]
    assert evaluated[24] < evaluated[16]  # with the weights and moments that it had
    assert read_history(old / METRICS)[:5] == before
