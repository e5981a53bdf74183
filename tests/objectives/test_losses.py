"""Losses against values worked out by hand, and every loss with every head."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from experiments.core.config import build, check_config
from experiments.core.experiment import Experiment
from experiments.errors import UserError
from experiments.objectives import losses
from support import composed, supervised_losses

SPARSE = ["model=sparse_autoencoder", "loss=binary_cross_entropy"]
OUTPUTS = jnp.array([[2.0, 0.5, -1.0]])
TARGETS = jnp.array([[0.0, 1.0, 0.0]])


def experiment(*overrides):
    config = composed(*overrides)
    data = build(config["data"])
    return Experiment(config, data.spec, data.pipeline, steps_per_epoch=2, total_steps=4)


@pytest.mark.parametrize(
    ("loss", "settings", "expected"),
    [
        (losses.mse, {}, 0.5 * (4 + 0.25 + 1)),
        (losses.mae, {}, 2 + 0.5 + 1),
        (losses.huber, {"delta": 1.0}, 1.5 + 0.125 + 0.5),
        (losses.hinge, {"margin": 1.0}, (1 + 1.5) + 0.0),
        (losses.cross_entropy, {"label_smoothing": 0.0}, np.log(np.exp([2, 0.5, -1]).sum()) - 0.5),
        (losses.binary_cross_entropy, {}, sum(np.log1p(np.exp([2, -0.5, -1])))),
        (losses.nll, {}, -0.5),
    ],
)
def test_value(loss, settings, expected):
    assert loss(OUTPUTS, TARGETS, **settings)[0] == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
    smoothed = losses.cross_entropy(OUTPUTS, TARGETS, label_smoothing=0.3)
    mixed = losses.cross_entropy(OUTPUTS, 0.7 * TARGETS + 0.1, label_smoothing=0.0)
    assert smoothed[0] == pytest.approx(float(mixed[0]), rel=1e-6)


@pytest.mark.parametrize("name", supervised_losses())
@pytest.mark.parametrize("head", [None, "identity", "sigmoid", "softmax"])
def test_gradients_equal_finite_differences_with_every_head(name, head):
    config = composed(f"loss={name}", f"objective.head={head or 'null'}")
    loss = build(config["loss"])
    function = getattr(loss, "func", loss)
    if function.takes == "logits" and head not in (None, "identity", function.head):
        with pytest.raises(UserError, match=r"use objective\.head=null"):
            build(config["objective"], loss=loss, num_classes=3)
        return
    objective = build(config["objective"], loss=loss, num_classes=3)
    with jax.enable_x64(True):
        outputs = jnp.array([[1.7, 0.45, -1.2], [0.3, -0.4, 0.9]])
        targets = jax.nn.one_hot(jnp.array([1, 2]), 3, dtype=outputs.dtype)

        def total(z):
            return objective.loss(objective.loss_input(z), targets).sum()

        check_grads(total, (outputs,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "in_nats"),
    [
        (["model.hidden=[4]"], {"loss"}),
        (["model=vae", "model.hidden=[4]"], {"loss", "elbo", "reconstruction", "kl"}),
        (["model=autoencoder", "loss=binary_cross_entropy"], {"loss", "reconstruction"}),
    ],
)
def test_bits_are_what_is_logged_and_change_no_step(chosen, in_nats):
    steps, evaluations = [], []
    for units in ("nats", "bits"):
        core = experiment(*chosen, f"trainer.units={units}")
        state = core.init({}, jax.random.key(0))
        batch = {"image": jnp.full((2, 8, 8, 1), 99, jnp.uint8), "label": jnp.arange(2)}
        steps.append(core.step(state, batch, {}, jax.random.key(1)))
        weights = (state.params, state.model_state)
        evaluations.append(jax.jit(core.eval_step)(*weights, batch | {"mask": jnp.ones(2)}, {})[0])
    (after, nats), (same, bits) = steps
    jax.tree.map(np.testing.assert_array_equal, after, same)
    for logged in ((nats, bits), evaluations):
        for name, value in jax.tree.leaves_with_path(logged[0]):
            other = dict(jax.tree.leaves_with_path(logged[1]))[name]
            unit = math.log(2) if name[0].key in in_nats else 1
            np.testing.assert_allclose(unit * other, value, rtol=1e-6)


@pytest.mark.parametrize("chosen", [["loss=mse"], ["model=gan"], ["loss=focal"], SPARSE])
def test_bits_of_what_is_no_log_likelihood_are_refused(chosen):
    with pytest.raises(UserError, match="units=bits: this loss is no log-likelihood as cross_en"):
        check_config(composed(*chosen, "trainer.units=bits"))


def test_a_softmax_head_is_not_applied_twice():
    config = composed("loss=cross_entropy")
    loss = build(config["loss"])
    plain, headed = (
        build({**config["objective"], "head": head}, loss=loss, num_classes=3)
        for head in ("identity", "softmax")
    )
    np.testing.assert_array_equal(plain.loss_input(OUTPUTS), headed.loss_input(OUTPUTS))


def test_focal_loss_without_gamma_is_cross_entropy():
    values = [float(losses.focal(OUTPUTS, TARGETS, gamma=g)[0]) for g in (0.0, 2.0)]
    whole = float(losses.cross_entropy(OUTPUTS, TARGETS, label_smoothing=0.0)[0])
    assert values[0] == pytest.approx(whole, rel=1e-6)
    assert values[1] == pytest.approx(whole * (1 - np.exp(-whole)) ** 2, rel=1e-5)
    sure = jnp.array([[100.0, -100.0]])  # 1 - p is 0: neither value nor slope may be NaN
    for gamma in (0.5, 2.0):
        slope = jax.grad(lambda z, g=gamma: losses.focal(z, jnp.eye(2)[:1], gamma=g).sum())(sure)
        assert np.all(np.isfinite(slope))
