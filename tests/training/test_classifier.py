"""Generated images scored by a classifier."""

import json

import numpy as np
import pytest

from experiments.training.figures import frechet_distance

SHORT = ["logger=none", "trainer.epochs=2", "trainer.steps_per_epoch=3", "data.batch_size=32"]


@pytest.mark.slow
def test_samples_are_scored_by_a_classifier_of_an_earlier_run(run_cli, tmp_path):
    classifier = tmp_path / "classifier"
    code, error = run_cli("model=mlp", "model.hidden=[16]", *SHORT, folder=classifier)
    assert code == 0, error
    options = ["model=gan", "model.hidden=[16]", f"objective.classifier={classifier}"]
    code, error = run_cli(*options, *SHORT)
    assert code == 0, error
    assert (tmp_path / "run" / "figures" / "classes.png").is_file()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/frechet"] > 0
    assert 0.1 <= summary["test/confidence"] <= 1
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert sum("val/frechet" in line for line in lines) == 2
    sampling = ["mode=sample", f"checkpoint={tmp_path / 'run'}", "sample.count=501"]
    code, error = run_cli(*sampling, folder=tmp_path / "drawn")
    assert code == 0, error
    drawn = np.load(tmp_path / "drawn" / "samples.npz")
    assert sorted(drawn) == ["x", "z"]
    assert drawn["x"].shape == (501, 8, 8, 1)
    assert len(np.unique(drawn["x"], axis=0)) == 501


def test_a_classifier_that_is_no_run_is_refused_before_the_first_step(run_cli, tmp_path):
    code, error = run_cli("model=gan", f"objective.classifier={tmp_path / 'absent'}", *SHORT)
    assert code == 2
    assert f"error: {tmp_path / 'absent'} does not exist; a run folder holds" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_frechet_distance_of_normal_distributions():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(200_000, 2)) * [1.0, 2.0]
    b = generator.normal(size=(200_000, 2)) * [3.0, 2.0] + [1.0, -2.0]
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
