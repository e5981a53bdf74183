"""The modes, above all those on an earlier run: evaluate, predict, export."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from typing import get_args

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from experiments.core.config import build
from experiments.training.restored import read
from experiments.types import Mode, RunMode
from support import ROOT, composed, logging_restored, run_command

OPTIONS = ["model=lenet5", "data.limit=512", "logger=none", "trainer.figures=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_home):
    """A run of six epochs with checkpoints of every second one."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    options = [*data_home, *OPTIONS, "trainer.epochs=6", "trainer.keep_every=2"]
    with logging_restored():
        assert run_command(*options, f"hydra.run.dir={folder}") == 0
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def evaluation(folder, name="best"):
    return json.loads((folder / "evaluations" / f"{name}.json").read_text())


def predictions(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images_of_the_test(data_home):
    return np.asarray(build(composed(*data_home)["data"]).load().test.arrays["image"])


def test_every_mode_is_named_where_a_user_looks(run_cli):
    modes = get_args(Mode)
    files = {path.stem for path in (ROOT / "src/experiments/commands").glob("*.py")}
    assert files - {"__init__", "dispatch", "report", "unseen"} == set(modes)
    comments = re.search(
        r"^mode:(.*?)^resume:", (ROOT / "conf/config.yaml").read_text(), re.M | re.S
    )
    assert set(modes) <= set(re.findall(r"\w+", comments[1]))
    code, error = run_cli("mode=evalute")
    assert code == 2
    assert f"must be one of {', '.join(modes)}; did you mean 'evaluate'?" in error
    for mode in get_args(RunMode):
        code, error = run_cli(f"mode={mode}")
        assert code == 2
        assert error.startswith(f"error: mode={mode} needs checkpoint=<run folder>")


@pytest.mark.slow
@pytest.mark.core
def test_evaluation_reproduces_the_logged_figures_bit_for_bit(run_cli, trained, tmp_path):
    code, error = run_cli("mode=evaluate", f"checkpoint={trained}")
    assert code == 0, error
    logged, found = summary(trained), evaluation(tmp_path / "run")
    for name in ("test/loss", "test/accuracy"):
        assert found[name] == logged[name]
    for name in ("val/loss", "val/accuracy"):
        assert found[name] == logged["best"][name]


def test_the_checkpoint_of_an_epoch_can_be_evaluated(run_cli, trained, tmp_path):
    saved = sorted(int(path.name) for path in (trained / "checkpoints").iterdir())
    assert saved == [16, 32, 48]
    code, _ = run_cli("mode=evaluate", f"checkpoint={trained}/checkpoints/16")
    assert code == 0
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    second = next(e for e in map(json.loads, lines) if e["epoch"] == 2.0 and "val/loss" in e)
    assert evaluation(tmp_path / "run", "16")["val/loss"] == second["val/loss"]
    code, error = run_cli("mode=evaluate", f"checkpoint={trained}/checkpoints/17")
    assert code == 2
    assert "there are 16, 32, 48" in error


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("logger=none", "keeps its choices; single values can be changed"),
        ("eval.tt=flip", "has no such value; did you mean 'tta'?"),
        ("evil.tta=flip", "has no such value; single values"),
    ],
)
def test_what_cannot_change_about_a_run_is_named(run_cli, trained, override, complaint):
    code, error = run_cli("mode=evaluate", f"checkpoint={trained}", override)
    assert code == 2
    assert f"{override}: the config of {trained} {complaint}" in error


def test_predictions_are_one_row_per_example_and_agree_with_the_test(run_cli, trained, tmp_path):
    code, error = run_cli("mode=predict", f"checkpoint={trained}")
    assert code == 0, error
    rows = predictions(tmp_path / "run")
    assert Counter(row["split"] for row in rows) == {"validation": 144, "test": 360}
    test = [row for row in rows if row["split"] == "test"]
    assert [int(row["index"]) for row in test] == list(range(360))
    hits = [row["label"] == row["predicted"] for row in test]
    assert sum(hits) / 360 == summary(trained)["test/accuracy"]
    p = np.array([[float(row[f"p_{c}"]) for c in range(10)] for row in rows])
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert [row["predicted"] for row in rows] == [str(i) for i in p.argmax(axis=1)]
    loss = np.mean([-np.log(q[int(row["label"])]) for q, row in zip(p[144:], test, strict=True)])
    assert loss == pytest.approx(summary(trained)["test/loss"], rel=1e-5)


@pytest.mark.slow
def test_predictions_of_the_training_examples_as_parquet(run_cli, trained, tmp_path):
    from pyarrow import parquet

    options = ["predict.format=parquet", "predict.splits=[train]"]
    code, error = run_cli("mode=predict", f"checkpoint={trained}", *options)
    assert code == 0, error
    table = parquet.read_table(tmp_path / "run" / "predictions.parquet")
    assert table.num_rows == 512
    assert table.column_names[:5] == ["index", "split", "label", "predicted", "p_0"]
    code, error = run_cli("mode=predict", f"checkpoint={trained}", "predict.splits=[tset]")
    assert code == 2
    assert "predict.splits" in error


@pytest.mark.slow
@pytest.mark.core
def test_an_export_runs_without_this_project(run_cli, trained, tmp_path, data_home):
    for mode in ("export", "predict"):
        code, error = run_cli(f"mode={mode}", f"checkpoint={trained}", folder=tmp_path / mode)
        assert code == 0, error
    images = images_of_the_test(data_home)
    np.save(tmp_path / "images.npy", images)
    program = """
import sys
import numpy as np
from jax import export
images = np.load("images.npy")
model = export.deserialize(open("export/model.stablehlo", "rb").read())
assert model.platforms == ("cpu", "cuda", "rocm", "tpu")
np.save("all.npy", model.call(images))
np.save("three.npy", model.call(images[:3]))
assert not any(name.startswith(("experiments", "flax")) for name in sys.modules)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    rows = [row for row in predictions(tmp_path / "predict") if row["split"] == "test"]
    expected = [[float(row[f"p_{c}"]) for c in range(10)] for row in rows]
    found = np.load(tmp_path / "all.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "three.npy"), found[:3], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_weights_are_exported_to_be_read_again(run_cli, trained, tmp_path):
    export = ["mode=export", f"checkpoint={trained}"]
    code, error = run_cli(*export, "export.format=safetensors")
    assert code == 0, error
    said = json.loads((tmp_path / "run/model.json").read_text())
    assert (said["names"], said["data"]["shape"]) == ("experiments", [8, 8, 1])
    assert (said["input_shape"], said["classes"]) == ([28, 28, 1], [str(n) for n in range(10)])
    weights = read(str(trained), said["model"])
    found = load_file(tmp_path / "run/model.safetensors")
    again = read(str(tmp_path / "run/model.safetensors"), said["model"])
    assert found.keys() == weights.keys() == again.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(again[name], array)
    code, error = run_cli(*export, "export.format=safetensor")
    assert code == 2
    assert "must be one of stablehlo, safetensors, onnx; did you mean 'safetensors'?" in error
    if find_spec("jax2onnx") is None:
        code, error = run_cli(*export, "export.format=onnx")
        assert code == 2
        assert error.endswith("not installed\npip install 'experiments[onnx]'\n")


@pytest.mark.skipif(find_spec("jax2onnx") is None, reason="needs jax2onnx: the extra `onnx`")
def test_onnx_runtime_computes_what_the_evaluation_does(run_cli, trained, tmp_path, data_home):
    import onnxruntime

    for mode in (["export", "export.format=onnx"], ["predict", "predict.splits=[test]"]):
        arguments = (f"mode={mode[0]}", f"checkpoint={trained}", mode[1])
        code, error = run_cli(*arguments, folder=tmp_path / "out")
        assert code == 0, error
    expected = [[float(row[f"p_{c}"]) for c in range(10)] for row in predictions(tmp_path / "out")]
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    images = images_of_the_test(data_home)
    (found,) = session.run(None, {"image": images})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (three,) = session.run(None, {"image": images[:3]})
    np.testing.assert_allclose(three, expected[:3], atol=1e-5)


@pytest.mark.parametrize("choices", ["hydra.yaml", "overrides.yaml"])  # of a run, of a trial
def test_a_run_of_an_older_version_is_evaluated(run_cli, trained, tmp_path, choices):
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    for other in {"hydra.yaml", "overrides.yaml"} - {choices}:
        (old / ".hydra" / other).unlink()
    path = old / ".hydra" / "config.yaml"
    config = OmegaConf.load(path)
    del config.trainer.keep_every, config.data.eval_batch_size, config.predict
    config.model.smoothness = 3
    # today's code is in other modules
    moved = re.sub(r"\bexperiments\.\w+\.", "experiments.", OmegaConf.to_yaml(config))
    assert "experiments.lenet_to_vgg.LeNet5" in moved
    path.write_text(moved)
    code, error = run_cli("mode=evaluate", f"checkpoint={old}")
    assert code == 0, error
    assert "no longer exist are left out: model.smoothness=3" in error
    assert evaluation(tmp_path / "run")["test/loss"] == summary(trained)["test/loss"]


def test_a_checkpoint_is_not_trained_on(run_cli, trained):
    code, error = run_cli(f"checkpoint={trained}")
    assert code == 2
    assert "figures, inspect, reproduce, sample or summary; to train on: resume=" in error
