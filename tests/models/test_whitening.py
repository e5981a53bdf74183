"""A whitening first layer: its filters in a run, from a stream, and in several trials."""

import jax
import numpy as np
import pytest

from experiments.core.rng import root_key
from experiments.data.dataset import Stream, some_examples
from experiments.training.loop import fit
from experiments.training.saving.trials import load
from experiments.training.setup import Setups
from support import composed, trial_of

LAYERS = "[{whiten:{kernel:2,epsilon:1.0e-6}},gelu,{max_pool:7},flatten,{dense:classes}]"


@pytest.fixture(scope="module")
def config(data_home):
    return composed(
        *data_home,
        "model=cnn",
        f"model.layers={LAYERS}",
        "optim.learning_rate=0.01",
        "data.batch_size=512",
        "trainer.epochs=1",
        "trainer.figures=false",
        'trainer.compilation_cache=""',
        "logger=none",
    )


def filters(state):
    return np.asarray(state.model_state["whiten1"]["kernel"])


def test_patches_of_the_training_images_come_out_uncorrelated(config):
    setup, key = Setups().of(config), root_key(0)
    core, images = setup.experiment, setup.splits.train.arrays["image"]
    hparams = setup.inputs_of(config)
    inputs = core.prepare({"image": images, "label": 0}, {}, key, train=False)["image"]
    model = core.trained_model(hparams, *core.init_weights(hparams, key))
    out = np.asarray(model.whiten1(inputs)).reshape(-1, 8)
    np.testing.assert_allclose(out[:, 4:], -out[:, :4], atol=1e-4)
    np.testing.assert_allclose(out[:, :4].T @ out[:, :4] / len(out), np.eye(4), atol=1e-2)


@pytest.mark.slow
def test_trials_have_the_filters_of_a_run_alone_which_training_leaves_as_they_are(config, tmp_path):
    setups, trials = Setups(), []
    for name, rate in (("a", 0.01), ("b", 0.1)):
        own = config | {"optim": config["optim"] | {"learning_rate": rate}, "name": name}
        trials.append(trial_of(own, tmp_path / name, setups=setups))
    fit(trials, tmp_path / "all", test=False)
    setup = trials[0].setup
    alone = Setups().of(config)
    expected = filters(alone.experiment.init(alone.inputs_of(config), root_key(0)))
    assert np.linalg.matrix_rank(expected.reshape(4, 8)) == 4
    shapes = setup.shapes, setup.experiment.weights(setup.shapes)
    for saved in load([trial.directory for trial in trials], [shapes] * 2):
        np.testing.assert_array_equal(filters(saved.state), expected)
        assert np.abs(saved.state.params["whiten1"]["bias"]).max() > 0


def test_without_data_there_are_no_filters(config):
    core = Setups().of(config).experiment
    core.examples = None
    with pytest.raises(ValueError, match="hand over examples"):
        core.init({}, jax.random.key(0))


def test_statistics_of_a_stream_are_those_of_its_first_examples():
    rows = np.arange(6 * 2 * 2 * 1, dtype=np.uint8).reshape(6, 2, 2, 1)

    class Opened:
        def __init__(self, size):
            self.batches = iter([{"image": rows[:size]}])

        def __next__(self):
            return next(self.batches)

        def close(self):
            self.batches = iter([])

    stream = Stream(len(rows), lambda size, seed, train: Opened(size))
    np.testing.assert_array_equal(some_examples(stream)["image"], rows)
