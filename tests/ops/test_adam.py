"""Adam's step in one operation against optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.core.config import build
from experiments.ops import library
from support import composed

pytestmark = pytest.mark.skipif(
    not library.available(), reason="no matrix units (AMX) here, or no C compiler"
)

YES, NO = jnp.bool_(True), jnp.bool_(False)


def drawn(seed):
    """Weights of several shapes: a scalar, a few, more than a thread takes at a time."""
    rng = np.random.default_rng(seed)
    shapes = {"bias": (37,), "kernel": (130, 97), "scale": ()}
    layers = {"first": shapes, "last": {"kernel": (5, 3, 2), "bias": (1,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        layers,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def stepped(optimizer, steps, accept=YES, seed=0):
    """Weights and state after some steps by the operation."""

    @jax.jit
    def step(params, state, grads, factor):
        return optimizer.step(grads, state, params, factor, {}).taken_if(accept)

    assert "adam_step" in str(jax.make_jaxpr(step)(*first(optimizer, seed), drawn(1), 1.0))
    params, state = first(optimizer, seed)
    for i in range(steps):
        params, state = step(params, state, drawn(seed + i + 1), 0.5**i)
    return params, state


def first(optimizer, seed):
    params = drawn(seed)
    return params, optimizer.init(params)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim=adam"],
        ["optim=adam", "optim.b1=0.5", "optim.clip_norm=2", "optim.l2=0.1"],
        ["optim=adamw", "optim.weight_decay=0.1"],
        ["optim=adamw", "optim.regularize_all=true", "optim.learning_rates={last: 0.01}"],
    ],
)
def test_the_operation_steps_as_optax_does(overrides):
    optimizer = build(composed(*overrides, "optim.learning_rate=0.1")["optim"])
    params, state = first(optimizer, 0)
    for i in range(3):
        updates, state = optimizer.update(drawn(i + 1), state, params, 0.5**i)
        params = optax.apply_updates(params, updates)
    actual, expected = jax.tree.leaves(stepped(optimizer, 3)), jax.tree.leaves((params, state))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_what_is_not_accepted_changes_no_bit():
    optimizer = build(composed("optim=adamw")["optim"])
    actual, expected = stepped(optimizer, 2, accept=NO), first(optimizer, 0)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_lane_has_the_bits_of_a_run_by_itself():
    rates, accept = jnp.array([0.1, 0.01, 0.3]), jnp.array([True, True, False])
    lanes = [first(build(composed("optim=adamw")["optim"]), seed) for seed in range(3)]

    def step(params, state, rate, accept):
        config = composed("optim=adamw")["optim"] | {"learning_rate": rate}
        return build(config).step(drawn(9), state, params, 1.0, {}).taken_if(accept)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    together = jax.jit(jax.vmap(step))(*stacked, rates, accept)
    twice = jax.jit(jax.vmap(jax.vmap(step)))(
        *jax.tree.map(lambda a: jnp.stack([a, a]), stacked),
        *(jnp.stack([a, a]) for a in (rates, accept)),
    )
    for i, lane in enumerate(lanes):
        alone = jax.jit(step)(*lane, rates[i], accept[i])
        of_lane, of_both = (
            jax.tree.map(lambda a, at=at: a[at], t) for t, at in ((together, i), (twice, (1, i)))
        )
        jax.tree.map(np.testing.assert_array_equal, alone, of_lane)
        jax.tree.map(np.testing.assert_array_equal, alone, of_both)
