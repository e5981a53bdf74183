"""A dense block against its layers one after another, written out here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.params import merged, variables
from experiments.models.dense_loop import segments
from experiments.models.densenet import DenseBlock

CHANNELS, DEPTH, GROWTH, RATE = 5, 3, 3, 0.3
MOMENTUM, EPSILON = 0.9, 1e-5
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=3e-5)


def block(bottleneck, rate=0.0):
    return DenseBlock(
        CHANNELS,
        DEPTH,
        GROWTH,
        bottleneck=bottleneck,
        dropout=rate,
        kernel_init=jax.nn.initializers.he_normal(),
        rngs=nnx.Rngs(params=0),
    )


def drawn(bottleneck):
    """A batch of maps, and weights and running averages that are not what they start from."""
    params, averages = variables(block(bottleneck))
    random = np.random.default_rng(0)
    params, averages = jax.tree.map(
        lambda a: jnp.asarray(a + 0.1 * random.normal(size=a.shape), jnp.float32),
        (params, averages),
    )
    return jax.random.normal(jax.random.key(1), (3, 6, 6, CHANNELS)), params, averages


def computed(bottleneck, train, x, params, averages, rate=0.0):
    """Maps and running averages of the block."""
    net = block(bottleneck, rate)
    nnx.update(net, nnx.State(merged(params, averages)))
    net.train() if train else net.eval()
    return net(x, rngs=nnx.Rngs(dropout=2)), variables(net)[1]


def written_out(bottleneck, train, x, params, averages, rate=0.0):
    """Maps and running averages, computed layer by layer."""
    params, averages = params["layer"], averages["layer"]
    moved = {number: {"mean": [], "var": []} for number in params["norms"]}
    factors = jnp.ones((DEPTH, *x.shape[:-1], GROWTH))
    if train:
        uniform = jax.random.uniform(nnx.Rngs(dropout=2).dropout(), factors.shape)
        factors = jnp.where(uniform < 1 - rate, 1 / (1 - rate), 0)

    def norm(x, number, of_layer):
        parts = (params["norms"][number], averages["norms"][number])
        weights, old = jax.tree.map(lambda a: a[of_layer], parts)
        mean, var = old["mean"], old["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            count = x[..., 0].size
            for name, now in {"mean": mean, "var": var * count / (count - 1)}.items():
                moved[number][name].append(MOMENTUM * old[name] + (1 - MOMENTUM) * now)
        return (x - mean) / jnp.sqrt(var + EPSILON) * weights["scale"] + weights["bias"]

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    start = 0
    for layer in range(DEPTH):
        own = slice(start, start + x.shape[-1])
        start = own.stop
        y = conv(jax.nn.relu(norm(x, 0, own)), params["convs"][0]["kernel"][:, :, own])
        if bottleneck:
            y = conv(jax.nn.relu(norm(y, 1, layer)), params["convs"][1]["kernel"][layer])
        x = jnp.concatenate([x, y * factors[layer]], axis=-1)
    if train:
        put = {0: jnp.concatenate, 1: jnp.stack}
        averages = {"norms": {n: {k: put[n](v) for k, v in m.items()} for n, m in moved.items()}}
    return x, {"layer": averages}


@pytest.mark.parametrize(
    ("bottleneck", "train"),
    [(False, True), (True, False), pytest.param(True, True, marks=pytest.mark.slow)],
)
def test_a_block_is_its_layers_one_after_another(bottleneck, train):
    x, params, averages = drawn(bottleneck)

    def total(function, x, params):
        maps, moved = function(bottleneck, train, x, params, averages, RATE)
        return jnp.sum(jnp.sin(maps)), (maps, moved)

    results = [
        jax.jit(jax.value_and_grad(functools.partial(total, f), (0, 1), has_aux=True))(x, params)
        for f in (computed, written_out)
    ]
    jax.tree.map(close, *results)


@pytest.mark.slow
def test_blocks_under_vmap_equal_blocks_by_themselves():
    x, params, averages = drawn(True)
    trials = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), (x, params, averages))
    rates = jnp.asarray([0.1, 0.4])

    def gradients(x, params, averages, rate):
        def total(x, params):
            maps, moved = computed(True, True, x, params, averages, rate)
            return jnp.sum(maps**2), moved

        return jax.grad(total, (0, 1), has_aux=True)(x, params)

    together = jax.jit(jax.vmap(gradients))(*trials, rates)
    for index in range(2):
        own = jax.tree.map(lambda a, i=index: a[i], (*trials, rates))
        jax.tree.map(
            lambda a, b, i=index: close(a[i], b, atol=1e-3), together, jax.jit(gradients)(*own)
        )


def test_frozen_norms_are_those_of_evaluation():
    x, params, averages = drawn(True)
    net = block(True)
    nnx.update(net, nnx.State(merged(params, averages)))
    net.train()
    net.layer.norms[0].eval()
    net(x)
    after = variables(net)[1]["layer"]["norms"]
    before = averages["layer"]["norms"]
    np.testing.assert_array_equal(after[0]["mean"], before[0]["mean"])
    assert not np.allclose(after[1]["mean"], before[1]["mean"])


@pytest.mark.slow
def test_maps_and_gradients_of_bfloat16_weights_are_bfloat16():
    x, params, averages = drawn(True)
    x, params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, params))
    gradient, maps = jax.grad(
        lambda p: (lambda y: (jnp.sum(y.astype(jnp.float32) ** 2), y))(
            computed(True, True, x, p, averages)[0]
        ),
        has_aux=True,
    )(params)
    assert maps.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}


def test_every_layer_draws_its_kernel_for_its_own_inputs():
    shapes = []

    def init(_, shape, dtype):
        shapes.append(shape)
        return jnp.zeros(shape, dtype)

    net = DenseBlock(
        CHANNELS, 3, GROWTH, bottleneck=False, dropout=0.0, kernel_init=init, rngs=nnx.Rngs(0)
    )
    assert shapes == [(3, 3, width, GROWTH) for width in (5, 8, 11)]
    assert net.layer.convs[0].kernel.shape == (3, 3, 24, GROWTH)


def test_layers_of_a_loop_are_not_much_narrower_than_the_widest():
    assert segments([64, 96, 128, 160, 192, 224]) == [range(3), range(3, 6)]
    assert segments([7]) == [range(1)]
