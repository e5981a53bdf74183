"""Weights of a run as the beginning of another, and as they are."""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.core.params import merged
from experiments.core.transfer import named
from experiments.data.dataset import Arrays, Splits
from experiments.models.torchvision import published
from experiments.training.evaluation import Data
from experiments.training.restored import better_choice
from experiments.training.setup import Setup
from support import composed

TINY = ["model.hidden=[8]", "data.limit=128", "trainer.epochs=1", "trainer.figures=false"]


def test_weights_of_a_run_are_evaluated_as_they_are_and_differences_said(
    run_cli, tmp_path, data_home, caplog
):
    run = tmp_path / "run"
    code, error = run_cli("model=mlp", "model.activation=tanh", *TINY, "logger=none")
    assert code == 0, error
    trained = json.loads((run / "summary.json").read_text())
    for model in ([], ["model=mlp", "model.hidden=[8]"]):
        options = ["mode=evaluate", f"model.pretrained={run}", "name=as_they_are", *model]
        with caplog.at_level(logging.WARNING):
            code, error = run_cli(*options, folder=tmp_path / "out")
        assert code == 0, error
        found = json.loads((tmp_path / "out/evaluations/as_they_are.json").read_text())
        assert (found["test/loss"] == trained["test/loss"]) == (not model)
        assert ("its model had activation=tanh (here relu)" in error) == bool(model)
    code, error = run_cli("mode=inspect", f"model.pretrained={run}", folder=tmp_path / "out")
    assert (code, "mode=inspect needs checkpoint=<run folder>" in error) == (2, True)


@pytest.mark.parametrize(("model", "other"), [("alexnet", "alexnet_single"), ("vgg11", "vgg13")])
def test_the_choice_that_weights_fit_better_is_named(tmp_path, model, other, caplog):
    small = ["data.limit=64", "trainer.checkpoints=false"]
    images = {
        "image": np.zeros((64, 8, 8, 1), np.uint8),
        "label": np.arange(64, dtype=np.int32) % 10,
    }
    data = Data(Splits(*[Arrays(images)] * 3, tuple("abcdefghij"), "zeros"))

    def setup(choice):
        return Setup(composed(f"model={choice}", *small), data, training=False)

    shapes = merged(setup(other).shapes.params, setup(other).shapes.model_state)
    weights = {
        name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in named(shapes).items()
    }
    source = tmp_path / "weights.safetensors"
    save_file(published(weights, composed(f"model={other}")["model"]), source)
    own = setup(model)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert better_choice(str(source), own, 100) == other
    assert not caplog.records  # of the images that each of the others needs
