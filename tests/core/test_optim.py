"""Settings that all optimizers share, on parameters small enough to follow by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.config import build, check_config, place
from experiments.core.experiment import Experiment
from experiments.core.optim import PartitionedOptimizer
from experiments.errors import UserError
from support import choices, composed

PARAMS = {"dense": {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([2.0])}}
GRADS = {"dense": {"kernel": jnp.array([[0.6, 0.8]]), "bias": jnp.array([0.5])}}
ZERO = jax.tree.map(jnp.zeros_like, GRADS)


def update(*overrides, grads=GRADS, factor=1.0):
    optimizer = build(composed(*overrides)["optim"])
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS, factor)
    return updates["dense"]


def test_sgd_steps_down_the_gradient_times_the_schedule():
    step = update("optim=sgd", "optim.learning_rate=0.1", factor=0.5)
    np.testing.assert_allclose(step["kernel"], [[-0.03, -0.04]], rtol=1e-6)


def test_decoupled_decay_is_independent_of_the_rule_and_spares_biases():
    for rule in ("sgd", "adam", "lion"):
        options = [f"optim={rule}", "optim.learning_rate=0.1", "optim.weight_decay=0.01"]
        step = update(*options, grads=ZERO)
        np.testing.assert_allclose(step["kernel"], [[-0.003, 0.004]], rtol=1e-5)
        np.testing.assert_array_equal(step["bias"], [0.0])
        everything = update(*options, "optim.regularize_all=true", grads=ZERO)
        np.testing.assert_allclose(everything["bias"], [-0.002], rtol=1e-5)


def test_penalties_are_the_gradients_of_what_they_add_to_the_loss():
    options = ["optim=sgd", "optim.learning_rate=1", "optim.l1=0.1", "optim.l2=0.01"]
    step = update(*options, grads=ZERO)

    def penalty(w):
        return 0.1 * jnp.abs(w).sum() + 0.01 * 0.5 * (w**2).sum()

    np.testing.assert_allclose(step["kernel"], -jax.grad(penalty)(PARAMS["dense"]["kernel"]))
    np.testing.assert_array_equal(step["bias"], [0.0])


def test_clipping_bounds_the_norm_and_the_components():
    step = update("optim=sgd", "optim.learning_rate=1", "optim.clip_norm=0.1")
    norm = np.sqrt(sum(float((v**2).sum()) for v in step.values()))
    assert norm == pytest.approx(0.1, rel=1e-5)
    step = update("optim=sgd", "optim.learning_rate=1", "optim.clip_value=0.7")
    np.testing.assert_allclose(step["kernel"], [[-0.6, -0.7]], rtol=1e-6)


def test_accumulated_batches_make_the_update_of_their_mean():
    overrides = ["optim=adam", "optim.accumulate=2"]
    optimizer = build(composed(*overrides)["optim"])
    state = optimizer.init(PARAMS)
    first, state = optimizer.update(GRADS, state, PARAMS, 1.0)
    second, _ = optimizer.update(jax.tree.map(lambda g: 3 * g, GRADS), state, PARAMS, 1.0)
    np.testing.assert_array_equal(first["dense"]["kernel"], [[0.0, 0.0]])
    mean = update("optim=adam", grads=jax.tree.map(lambda g: 2 * g, GRADS))
    np.testing.assert_allclose(second["dense"]["kernel"], mean["kernel"], rtol=1e-5)


def test_one_optimizer_cannot_leave_a_part_out_at_some_steps():
    config = composed("optim=adam")
    data = build(config["data"])
    core = Experiment(config, data.spec, data.pipeline, 1, 1)
    with pytest.raises(UserError, match=r"generator .*discriminator_optim"):
        core.optimizer({}, {"generator": jnp.bool_(True)})


@pytest.mark.parametrize("due", [True, False])
def test_each_part_has_its_own_optimizer_and_stays_where_it_is_not_due(due):
    adam, sgd = (build(composed(f"optim={rule}")["optim"]) for rule in ("adam", "sgd"))
    both = PartitionedOptimizer({"critic": sgd}, adam, {"critic": jnp.bool_(due)})
    params, grads = ({"critic": tree, "actor": tree} for tree in (PARAMS, GRADS))
    state = both.init(params)
    updates, _ = both.update(grads, state, params, 1.0)
    stepped, after = both.step(grads, state, params, 1.0, jnp.bool_(True))
    refused = both.step(grads, state, params, 1.0, jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, refused, (params, state))
    alone = {
        "actor": adam.update(GRADS, adam.init(PARAMS), PARAMS, 1.0)[0],
        "critic": jax.tree.map(lambda g: -sgd.learning_rate * g if due else 0 * g, GRADS),
    }
    jax.tree.map(np.testing.assert_array_equal, updates, alone)
    expected = jax.tree.map(jnp.add, params, alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stepped, expected)
    assert int(after["actor"][0].count) == 1


def test_the_average_warms_up_and_then_follows_its_decay():
    optimizer = build(composed("optim.ema_decay=0.9")["optim"])
    assert optimizer.average(1.0, 0.0, jnp.int32(0)) == pytest.approx(0.1)
    assert optimizer.average(1.0, 0.0, jnp.int32(10_000)) == pytest.approx(0.9)


@pytest.mark.parametrize("name", choices("optim"))
def test_every_rule_is_given_numbers_that_it_can_train_with(name):
    """A decay of 1 or more, or an eps of 0, would end in a loss that is not finite, or in none."""
    config = composed(f"optim={name}", f"optim@discriminator_optim={name}")
    decays = config["optim"].keys() & {"b1", "b2", "rho", "decay", "momentum"}
    wrong = [(a, v) for a in decays for v in (1.0, 1.5, -0.1, "abc")]
    wrong += [(a, v) for a in config["optim"].keys() & {"eps"} for v in (0.0, -1.0)]
    for argument, value in wrong:
        for path in (f"optim.{argument}", f"discriminator_optim.{argument}"):
            with pytest.raises(UserError, match=f"^{path}={value}: must be"):
                check_config(place(config, {path: value}))
    check_config(config)


@pytest.mark.parametrize("name", choices("optim"))
def test_every_optimizer_goes_downhill_on_a_quadratic(name):
    optimizer = build(composed(f"optim={name}", "optim.weight_decay=0")["optim"])
    target = jax.random.normal(jax.random.key(0), (8, 4))

    def loss(p):
        return 0.5 * ((p["kernel"] - target) ** 2).sum() + 0.5 * ((p["bias"] - 1) ** 2).sum()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, 1.0)
        return jax.tree.map(jnp.add, params, updates), state

    params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
    state, start = optimizer.init(params), loss(params)
    for _ in range(50):
        params, state = step(params, state)
    assert loss(params) < start
