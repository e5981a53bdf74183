"""The pure core: what is traced, and each of several trials side by side as a run of its own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from experiments.core.config import build, hyperparameters
from experiments.core.experiment import Experiment
from experiments.ops.backend import xla_only
from experiments.training.setup import Setups
from support import choices, composed, supervised_losses

BATCH = 16
KEY = jax.random.key(7)


def experiment(*overrides):
    config = composed("model.hidden=[8]", *overrides)
    data = build(config["data"])
    return Experiment(config, data.spec, data.pipeline, steps_per_epoch=10, total_steps=40)


@pytest.fixture(scope="module")
def batch():
    image = jax.random.randint(jax.random.key(0), (BATCH, 8, 8, 1), 0, 256).astype(jnp.uint8)
    return {"image": image, "label": jnp.arange(BATCH, dtype=jnp.int32) % 10}


def steps(core, hparams, key, batch, count=3):
    state = core.init(hparams, key)
    step = jax.jit(core.train_step)
    for _ in range(count):
        state, metrics = step(state, batch, hparams, key)
    return state, metrics


def test_floats_are_hyperparameters_and_zeros_and_counts_are_not():
    found = hyperparameters(composed("model.dropout=0.3", "loss.label_smoothing=0.1"))
    assert found["optim.learning_rate"] == 0.001
    assert found["model.dropout"] == 0.3
    assert found["loss.label_smoothing"] == 0.1
    assert found["init.scale"] == 2.0
    assert "optim.weight_decay" not in found  # 0.0: switched off
    assert "optim.accumulate" not in found
    assert "trainer.log_every" not in found


ALL_TRACED = [
    "model.dropout=0.3",
    "loss.label_smoothing=0.1",
    "optim.weight_decay=0.01",
    "optim.l1=1.0e-5",
    "optim.l2=1.0e-4",
    "optim.clip_norm=1.0",
    "optim.ema_decay=0.9",
    "schedule=warmup_cosine",
    "data.augment.jitter=0.1",
    "data.augment.rotation=9.0",
    "data.augment.random_erasing=0.5",
]


def test_one_program_serves_every_value(batch):
    core = experiment(*ALL_TRACED)
    hparams = {k: np.float32(v) for k, v in hyperparameters(core.config).items()}
    assert len(hparams) >= 13
    traces = 0

    def counted(*arguments):
        nonlocal traces
        traces += 1
        return core.train_step(*arguments)

    step = jax.jit(counted)
    for scale in (1.0, 0.5, 0.25):
        values = {k: np.float32(v * scale) for k, v in hparams.items()}
        step(core.init(values, KEY), batch, values, KEY)
    assert traces == 1


@pytest.mark.slow
def test_a_trial_of_a_batch_of_them_equals_the_same_trial_alone(batch):
    core = experiment(*ALL_TRACED)
    names = hyperparameters(core.config)
    trials = [{k: np.float32(v * s) for k, v in names.items()} for s in (1.0, 0.7, 0.3)]
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    states = [core.init(hparams, key) for hparams, key in zip(trials, keys, strict=True)]
    state, stacked = (jax.tree.map(lambda *v: jnp.stack(v), *trees) for trees in (states, trials))
    step = jax.jit(jax.vmap(core.train_step, in_axes=(0, None, 0, 0)))
    for _ in range(3):
        state, metrics = step(state, batch, stacked, keys)
    for i, hparams in enumerate(trials):
        alone, of_alone = steps(core, hparams, jax.random.key(i), batch)
        mine = jax.tree.map(lambda a, i=i: a[i], state)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), mine, alone
        )
        assert float(metrics["loss"][i]) == pytest.approx(float(of_alone["loss"]), rel=1e-4)


def test_a_value_that_cannot_be_traced_is_found_by_trying(batch):
    config = composed("model.hidden=[8]", "optim=momentum", "data.augment.mixup=0.2")
    config["optim"]["rule"] = "test_experiment.stubborn"
    inputs = Setups().of(config).traced.inputs
    assert set(hyperparameters(config)) - set(inputs) == {"optim.momentum"}
    assert inputs


def stubborn(momentum: float, nesterov: bool):
    """An optimizer rule that has to know its momentum in Python."""
    import optax

    return optax.trace(momentum, nesterov) if momentum > 0.5 else optax.identity()


def test_a_step_that_is_not_measured_is_the_same_step(batch):
    core = experiment("optim.clip_norm=1.0", "optim.weight_decay=0.01")
    hparams = {k: np.float32(v) for k, v in hyperparameters(core.config).items()}
    before = core.init(hparams, KEY)
    step = jax.jit(core.train_step)
    (after, metrics), (same, fewer) = (step(before, batch, hparams, KEY, m) for m in (True, False))
    jax.tree.map(np.testing.assert_array_equal, after, same)
    change = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, after.params, before.params)
    for name, tree in (("param_norm", after.params), ("update_norm", change)):
        expected = math.sqrt(sum(float(np.sum(np.square(a))) for a in jax.tree.leaves(tree)))
        assert float(metrics.pop(name)) == pytest.approx(expected, rel=1e-4)
        if jax.default_backend() == "cpu":
            assert np.isnan(fewer.pop(name))
    assert metrics == fewer


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_step_that_is_not_finite_changes_nothing(batch, policy):
    core = experiment(f"trainer.on_nan={policy}", "optim=sgd")
    hparams = {k: np.float32(v) for k, v in hyperparameters(core.config).items()}
    step = jax.jit(core.train_step)
    start = core.init(hparams, KEY)
    bad = hparams | {"optim.learning_rate": np.float32(np.nan), "init.scale": np.float32(np.nan)}
    poisoned = start._replace(params=jax.tree.map(lambda a: a * np.nan, start.params))
    after, _ = step(poisoned, batch, bad, KEY)
    assert int(after.diverged_at) == 0
    assert int(after.step) == 1
    # the next step is finite again: `skip` takes it, `stop` does not
    again, _ = step(start._replace(diverged_at=after.diverged_at), batch, hparams, KEY)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), again.params, start.params)
    assert all(jax.tree.leaves(same)) == (policy == "stop")


def test_bf16_computes_in_bf16_and_keeps_fp32_parameters(batch):
    core = experiment("trainer.precision=bf16")
    hparams = {k: np.float32(v) for k, v in hyperparameters(core.config).items()}
    exact = steps(experiment(), hparams, KEY, batch)
    rough = steps(core, hparams, KEY, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough[0].params))
    assert float(rough[1]["loss"]) == pytest.approx(float(exact[1]["loss"]), rel=0.02)
    assert float(rough[1]["loss"]) != float(exact[1]["loss"])


TRAINING = [
    *(("optim", name) for name in choices("optim")),
    *(("init", name) for name in choices("init")),
    *(("loss", name) for name in supervised_losses()),
    *(("schedule", name) for name in choices("schedule")),
]


@pytest.mark.parametrize(("group", "name"), TRAINING)
def test_every_choice_trains(batch, group, name):
    # without hidden layers even weights that are all zero have a gradient
    core = experiment(f"{group}={name}", "model.hidden=[]")
    hparams = {k: np.float32(v) for k, v in hyperparameters(core.config).items()}
    state = core.init(hparams, KEY)

    @jax.jit
    def run(state):
        def body(state, _):
            state, metrics = core.train_step(state, batch, hparams, KEY)
            return state, metrics["loss"]

        return jax.lax.scan(body, state, length=40)

    state, losses = run(state)
    assert int(state.diverged_at) == -1
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("overrides", [["model=autoencoder"], ["data=sine", "model=lstm"]])
def test_an_evaluation_is_of_any_number_of_examples(overrides):
    """So that it can be exported."""
    config = composed(*overrides)
    data = build(config["data"])
    whole = Experiment(config, data.spec, data.pipeline, steps_per_epoch=10, total_steps=40)
    (size,) = export.symbolic_shape("size")
    stored = {**data.spec.stored, "mask": ((), "float32")}
    batch = {n: jax.ShapeDtypeStruct((size, *s), np.dtype(t)) for n, (s, t) in stored.items()}
    weights = whole.weights(whole.abstract_state({}))
    with xla_only():
        _, outputs = jax.eval_shape(whole.eval_step, *weights, batch, {})
    assert {leaf.shape[0] for leaf in jax.tree.leaves(outputs)} == {size}
