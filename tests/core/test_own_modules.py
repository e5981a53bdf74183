"""Models of a user's own, written with Flax's modules alone."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.config import build
from experiments.core.experiment import Experiment
from experiments.core.rng import reseed, stream
from experiments.training.loop import fit
from experiments.training.setup import Setups
from support import composed, trial_of


class Layers(nnx.Module):
    def __init__(self, *, width: int, input_shape, num_classes, kernel_init, rngs):
        size = math.prod(input_shape)
        self.hidden = nnx.Linear(size, width, kernel_init=kernel_init, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropouts = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])
        self.output = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.hidden(x.reshape(len(x), -1)))
        self.masks = nnx.data([dropout(jnp.ones_like(x)) == 0 for dropout in self.dropouts])
        return self.output(jax.nn.relu(jnp.where(self.masks[0], 0, x)))


class Recurrent(nnx.Module):
    def __init__(self, *, width: int, input_shape, num_classes, kernel_init, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(input_shape[1], width, rngs=rngs))
        self.output = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        return self.output(self.rnn(x[..., 0])[:, -1])


def config(name, *overrides):
    module = sys.modules[__name__].__name__
    plain = composed("logger=none", "data.limit=128", "trainer.epochs=2", *overrides)
    node = {"_target_": f"{module}.{name}", "width": 8, "pretrained": None}
    return plain | {"model": node}


def test_dropout_draws_by_layer_and_step_and_not_in_evaluation():
    own = config("Layers")
    data = build(own["data"])
    core = Experiment(own, data.spec, data.pipeline, steps_per_epoch=2, total_steps=4)
    key, x = jax.random.key(3), jnp.ones((4, 8, 8, 1))
    params, rest = core.init_weights({}, key)
    assert set(rest) == {"norm"}  # no keys: a checkpoint has none

    def masks(step, train=True):
        model = core.trained_model({}, params, rest, train=train)
        reseed(model, stream(key, "model", step))
        model(x)
        return [np.asarray(mask) for mask in model.masks]

    (first, second), (later, _) = masks(0), masks(1)
    assert 0.2 < first.mean() < 0.8
    assert (first != second).any()
    assert (first != later).any()
    np.testing.assert_array_equal(first, masks(0)[0])
    assert not any(mask.any() for mask in masks(0, train=False))


@pytest.mark.parametrize("name", ["Layers", "Recurrent"])
def test_trials_side_by_side_are_as_alone(name, data_home, tmp_path):
    setups = Setups()

    def trials(folder, seeds):
        shared = config(name, *data_home, "trainer.figures=false")
        trainer = shared["trainer"] | {"shuffle_seed": 0}
        configs = {tmp_path / f"{folder}{seed}": {"seed": seed} for seed in seeds}
        own = {"trainer": trainer}
        return [trial_of(shared | own | c, f, setups=setups) for f, c in configs.items()]

    together = fit(trials("both", (0, 1)), tmp_path / "both", width=1)
    (alone,) = fit(trials("one", (1,)), tmp_path / "one")
    for metric in ("train/loss", "val/loss", "test/loss"):
        assert together[1][metric] == alone[metric]
    assert together[0]["train/loss"] != alone["train/loss"]
