"""Metrics of sequences of labels, characters and numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.errors import UserError
from experiments.objectives import losses
from experiments.objectives.regression import Regression
from experiments.objectives.sequence import Labelling, Language


class Given(nnx.Module):
    """A model of sequences whose outputs are given."""

    sequential = True

    def __init__(self, outputs, own=None):
        self.outputs, self.own = nnx.data(outputs), nnx.data(own)
        self.writes = own is not None

    def __call__(self, x, *, steps=None, targets=None, rngs=None):
        return self.outputs if self.own is None or targets is not None else self.own

    def advance(self, tokens, carries):
        raise NotImplementedError


def cross_entropy(logits, targets):
    return losses.cross_entropy(logits, targets, label_smoothing=0.0)


cross_entropy.takes, cross_entropy.head = "logits", "softmax"


def logits_of(classes, size=3, sure=20.0):
    return sure * jax.nn.one_hot(jnp.array(classes), size)


def test_only_steps_with_a_weight_count():
    objective = Labelling(loss=cross_entropy, head=None, num_classes=3)
    batch = {
        "tokens": jnp.zeros((2, 4), int),
        "target": jnp.array([[0, 0, 1, 2], [0, 0, 1, 2]]),
        "weight": jnp.array([[0.0, 0.0, 1.0, 1.0]] * 2),
    }
    outputs = logits_of([[2, 2, 1, 2], [0, 0, 1, 1]])
    values, _ = objective(Given(outputs), batch, None, 0)
    np.testing.assert_allclose(values["accuracy"], [1, 0.5])
    np.testing.assert_array_equal(values["solved"], [1, 0])
    np.testing.assert_allclose(values["loss"], [0, 10], atol=1e-4)


def test_a_model_that_generates_is_measured_by_its_own_sequence():
    objective = Labelling(loss=cross_entropy, head=None, num_classes=3)
    batch = {"tokens": jnp.zeros((1, 3), int), "target": jnp.array([[0, 1, 2]])}
    forced, free = logits_of([[0, 1, 2]]), logits_of([[0, 2, 1]])
    values, outputs = objective(Given(forced, free), batch, None, 0)
    assert values["loss"][0] == pytest.approx(0, abs=1e-4)
    assert values["accuracy"][0] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(objective.predictions(outputs), [[0, 2, 1]])


def test_a_guess_among_eight_characters_takes_three_bits():
    objective = Language(loss=cross_entropy, head=None, num_classes=8)
    batch = {"tokens": jnp.zeros((2, 5), int), "target": jnp.ones((2, 5), int)}
    values, outputs = objective(Given(jnp.zeros((2, 5, 8))), batch, None, 0)
    np.testing.assert_allclose(values["bits_per_character"], 3, rtol=1e-6)
    np.testing.assert_allclose(values["loss"], 3 * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(np.exp(objective.predictions(outputs)), 1 / 8, rtol=1e-6)


def test_numbers_are_measured_in_the_unit_of_the_data():
    objective = Regression(loss=losses.mse, tolerance=0.5, num_classes=2)
    batch = {
        "sequence": jnp.zeros((2, 4, 1)),
        "target": jnp.array([[1.0, 2.0], [0.0, 0.0]]),
        "unit": jnp.array([10.0, 10.0]),
    }

    class Vector(Given):
        def __call__(self, x, *, rngs=None):
            return self.outputs

    values, _ = objective(Vector(jnp.array([[1.0, 3.0], [0.1, 0.2]])), batch, None, 0)
    np.testing.assert_allclose(values["loss"], [0.5, 0.025], rtol=1e-6)
    np.testing.assert_allclose(values["squared_error"], [0.5, 0.025], rtol=1e-6)
    np.testing.assert_allclose(values["absolute_error"], [5, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(values["solved"], [0, 1])


def test_models_and_losses_that_do_not_fit_end_in_one_line():
    batch = {"tokens": jnp.zeros((1, 3), int), "target": jnp.zeros((1, 3), int)}
    seeing = Given(jnp.zeros((1, 3, 2)))
    seeing.bidirectional = True
    with pytest.raises(UserError, match="reads from left to right"):
        Language(loss=cross_entropy, head=None, num_classes=2)(seeing, batch, None, 0)
    with pytest.raises(UserError, match="one output for a whole sequence"):
        Labelling(loss=cross_entropy, head=None, num_classes=2)(nnx.Module(), batch, None, 0)
    with pytest.raises(UserError, match="use loss=mse, mae or huber"):
        Regression(loss=cross_entropy, tolerance=None, num_classes=1)
