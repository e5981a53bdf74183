"""`mode=inspect`: what is written for a run, and that maps point to what decides."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.core.config import build
from experiments.core.diagnostics.attribution import attribute, gradient_through_time
from experiments.core.diagnostics.embeddings import principal_components
from experiments.core.experiment import Experiment
from experiments.viz.pages.runs_page import read_run
from support import composed

LAYERS = "[{conv:{features:2,kernel:1}},flatten,{dense:classes}]"


def network(*overrides):
    """Return an experiment, new weights, and examples of the training split."""
    config = composed(*overrides)
    data = build(config["data"])
    core = Experiment(config, data.spec, data.pipeline, steps_per_epoch=1, total_steps=1)
    examples = data.load().train.take(np.arange(6)).arrays
    return core, core.init_weights({}, jax.random.key(0)), examples


@pytest.mark.slow
def test_a_run_is_looked_into(run_cli, tmp_path):
    layers = "[{conv:{features:3,kernel:3}},relu,flatten,{dense:8},relu,{dense:classes}]"
    short = ["trainer.epochs=1", "data.limit=128", "trainer.figures=false", "logger=none"]
    run, other = tmp_path / "run", tmp_path / "other"
    code, error = run_cli("model=cnn", f"model.layers={layers}", *short)
    assert code == 0, error
    Image.new("L", (30, 20), 90).save(tmp_path / "photo.png")
    inspect = ["mode=inspect", f"checkpoint={run}"]
    code, error = run_cli(*inspect, folder=other)
    assert code == 0, error
    names = {path.stem for path in (run / "inspect").glob("*.png")}
    assert names == {
        "activations", "attribution", "feature_maps", "filters", "mistakes", "norms", "pca",
        "t_sne",
    }  # fmt: skip
    for name in names:
        assert np.asarray(Image.open(run / f"inspect/{name}.png").convert("L")).std() > 1, name
    assert names == {path.stem for path in read_run(run, tmp_path).figures}  # on its page
    found = json.loads((run / "inspect/inspect.json").read_text())
    assert list(found["layers"]) == ["conv1", "dense1", "dense2"]
    assert all(layer["update_norm"] > 0 for layer in found["layers"].values())
    losses = [one["loss"] for one in found["mistakes"]]
    assert losses == sorted(losses, reverse=True)
    assert all(one["true"] != one["predicted"] for one in found["mistakes"])

    code, error = run_cli(*inspect, f"input={tmp_path}/photo.png", folder=other)
    assert code == 0, error
    assert json.loads((run / "inspect/inspect.json").read_text()) == found  # which stays
    own = json.loads((run / "inspect/photo.png/inspect.json").read_text())
    assert [one["example"] for one in own["attribution"]["examples"]] == ["photo.png"]
    assert names == {path.stem for path in (run / "inspect/photo.png").glob("*.png")}
    np.save(tmp_path / "wrong.npy", np.zeros((2, 5), np.uint8))
    code, error = run_cli(*inspect, f"input={tmp_path}/wrong.npy", folder=other)
    assert code == 2
    assert "has uint8 of 5; this run has learnt images in bytes" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("channel", [0, 1])
def test_maps_peak_at_what_decides(channel):
    core, (params, state), examples = network("model=cnn", f"model.layers={LAYERS}")
    weights = np.zeros((8, 8, 2, 10), np.float32)
    weights[..., channel, 3] = 0.01
    weights[2, 5, channel, 3] = 1.0  # one pixel counts a hundred times as much
    params["conv1"]["kernel"] = np.array([[[[1.0, -1.0]]]], np.float32)  # light, and dark
    params["dense1"] = {"kernel": weights.reshape(128, 10), "bias": 9.0 * np.eye(10)[3]}
    images = np.zeros((6, 8, 8, 1), np.uint8)
    images[:, 4:, 4:] = 255  # light in one quadrant
    found = attribute(core, (params, state), {**examples, "image": images})
    assert found.layer == "conv1"
    assert found.predictions.argmax(axis=1).tolist() == [3] * 6
    one = found.saliency[0]
    assert np.unravel_index(one.argmax(), one.shape) == (2, 5)
    assert np.sort(one.ravel())[-2] == pytest.approx(0.01 / 1.0 * one.max(), rel=1e-3)
    light = np.zeros((8, 8), bool)
    light[4:, 4:] = True
    peaks = found.class_map[0] == found.class_map[0].max()
    np.testing.assert_array_equal(peaks, light if channel == 0 else ~light)


@pytest.mark.parametrize("data", ["digits_rows", "copy"])  # of numbers, of tokens
def test_the_gradient_through_time_has_a_value_for_each_step(data):
    core, weights, examples = network("model=lstm", f"data={data}", "model.hidden=8")
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    found = gradient_through_time(core, weights, {**examples, "mask": mask})
    assert found.shape == core.input_shape[:1]
    assert (found > 0).all()
    if data == "copy":
        return

    batch = core.prepare(examples, {}, None, train=False)

    def loss(sequence):
        model = core.trained_model({}, *weights)
        values, _ = core.objective({})(model, batch | {"sequence": sequence}, None, None)
        return values["loss"].sum()

    lengths = np.linalg.norm(jax.grad(loss)(batch["sequence"]), axis=-1)[:4].mean(axis=0)
    np.testing.assert_allclose(found, lengths, rtol=1e-4)
    dense, weights, examples = network("model=mlp")
    assert gradient_through_time(dense, weights, {**examples, "mask": mask}) is None


def test_principal_components_find_the_direction_of_the_variance():
    along = np.linspace(-1, 1, 9)
    points = along[:, None] * np.array([3.0, 0.0, 4.0]) + 7
    found, shares = principal_components(points)
    np.testing.assert_allclose(np.abs(found[:, 0]), 5 * np.abs(along), atol=1e-6)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)
