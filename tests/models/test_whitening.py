"""A whitened first layer: filters out of the data, in a run, a stream and a population."""

import jax
import numpy as np
import pytest

from experiments.data.dataset import Stream, some_examples
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.tracker import Trackers
from experiments.training import stored
from experiments.training.kept import Kept
from experiments.training.population_fit import fit_together, open_lane
from experiments.training.population_lane import Member
from experiments.training.session import open_session
from experiments.training.signals import StopRequest
from support import composed

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
    session = open_session(config)
    core, images = session.experiment, session.splits.train.arrays["image"]
    state = core.init(session.hparams, session.key)
    inputs = core.prepare({"image": images, "label": 0}, {}, session.key, train=False)["image"]
    model = core.trained_model(session.hparams, state.params, state.model_state)
    out = np.asarray(model.whiten1(inputs)).reshape(-1, 8)
    np.testing.assert_allclose(out[:, 4:], -out[:, :4], atol=1e-4)
    np.testing.assert_allclose(out[:, :4].T @ out[:, :4] / len(out), np.eye(4), atol=1e-2)


def test_lanes_have_the_filters_of_a_run_alone_which_training_leaves_as_they_are(config, tmp_path):
    kept, lanes = Kept(), []
    for name, rate in (("a", 0.01), ("b", 0.1)):
        own = config | {"optim": config["optim"] | {"learning_rate": rate}, "name": name}
        (tmp_path / name).mkdir()
        trackers = Trackers([JsonLines()])
        lanes.append(Member(open_lane(own, kept), tmp_path / name, trackers, StopRequest()))
    fit_together(lanes, tmp_path / "all", test=False)
    core, hparams = lanes[0].session.experiment, lanes[0].session.hparams
    alone = open_session(config)
    expected = filters(alone.experiment.init(alone.hparams, alone.key))
    assert np.linalg.matrix_rank(expected.reshape(4, 8)) == 4
    shapes = core.abstract_state(hparams)
    for lane in lanes:
        state = stored.load([lane.directory], shapes, core.weights(shapes))[0][0]
        np.testing.assert_array_equal(filters(state), expected)
        assert np.abs(state.params["whiten1"]["bias"]).max() > 0


def test_without_data_there_are_no_filters(config):
    core = open_session(config).experiment
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

    stream = Stream(len(rows), lambda size, seed, train, wanted: Opened(size))
    np.testing.assert_array_equal(some_examples(stream)["image"], rows)
