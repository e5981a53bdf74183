"""Recurrent networks against PyTorch, finite differences and their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.errors import UserError
from experiments.models.recurrent import Recurrent
from experiments.models.recurrent_layers import FORGET_GATE

NAMES = ["rnn", "lstm", "gru", "peephole_lstm"]
HIDDEN = 5
DEFAULTS = {
    "hidden": HIDDEN,
    "layers": 1,
    "bidirectional": False,
    "dropout": 0.0,
    "layer_norm": False,
    "forget_bias": 1.0,
    "embedding": None,
    "streams": None,
}


def model(cell, shape=(6, 3), classes=4, moved=True, **changes):
    """A network for evaluation; with `moved` no parameter has the value that it starts with."""
    rng = np.random.default_rng(0)
    net = Recurrent(
        cell=cell,
        **(DEFAULTS | changes),
        input_shape=shape,
        num_classes=classes,
        kernel_init=lambda key, shape, dtype: rng.normal(0, 0.5, shape).astype(np.float32),
        rngs=nnx.Rngs(params=0),
    )
    net.eval()
    if moved:
        noise = jax.tree.map(
            lambda a: np.asarray(a) + rng.normal(0, 0.3, a.shape).astype(np.float32),
            nnx.state(net, nnx.Param),
        )
        nnx.update(net, noise)
    return net


def sequences(batch=3, steps=6, features=3, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, steps, features)), dtype)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_logits_equal_pytorchs(name, bidirectional):
    torch = pytest.importorskip("torch")
    net = model(name, layers=2, bidirectional=bidirectional)
    hidden, options = HIDDEN, {"batch_first": True, "bidirectional": bidirectional}
    peer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name](
        3, hidden, 2, **options
    )
    gates = slice(None)
    for index, layer in enumerate(net.stack.layers):
        for direction, suffix in zip(layer, ["", "_reverse"], strict=False):
            biases = np.asarray(direction.bias[...]), np.zeros_like(direction.bias[...])
            if name == "gru":
                biases[1][2 * hidden :] = direction.own["bias"][...]
            weights = direction.kernel[...].T, direction.recurrent_kernel[...].T, *biases
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for kind, value in zip(kinds, weights, strict=True):
                parameter = getattr(peer, f"{kind}_l{index}{suffix}")
                parameter.data = torch.tensor(np.asarray(value[gates]).tolist())
    x = sequences()
    expected = peer(torch.tensor(x.tolist()))[0].detach().tolist()
    kernel, bias = net.output.kernel[...], net.output.bias[...]
    np.testing.assert_allclose(net(x, steps=6), np.array(expected) @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer_norm"),
    [*((name, False) for name in NAMES), ("gru", True), ("peephole_lstm", True)],
)
def test_gradients_equal_finite_differences(name, layer_norm):
    with jax.enable_x64(True):
        graph, params = nnx.split(model(name, layer_norm=layer_norm))
        params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
        x, lengths = np.asarray(sequences(steps=3), np.float64), np.array([3, 1, 2])
        rng, step = np.random.default_rng(2), 1e-5
        direction = jax.tree.map(lambda a: rng.normal(size=a.shape), (params, x))

        def total(p, x):
            return jnp.sum(jnp.sin(nnx.merge(graph, p)(x, steps=3, lengths=lengths)))

        def at(distance):
            return jax.tree.map(lambda a, d: a + distance * d, (params, x), direction)

        value_and_gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        gradient = value_and_gradient(*at(0))[1]
        products = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradient, direction)
        rise = value_and_gradient(*at(step))[0] - value_and_gradient(*at(-step))[0]
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), rise / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("name", ["gru", "peephole_lstm"])
def test_steps_after_the_end_of_a_sequence_are_ignored(name):
    net = model(name, layers=2, bidirectional=True)
    x = sequences()
    padded = net(x, lengths=jnp.array([6, 4, 1]))
    np.testing.assert_allclose(padded[1], net(x[1:2, :4])[0], atol=1e-6)
    np.testing.assert_allclose(padded[2], net(x[2:3, :1])[0], atol=1e-6)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_state_carried_over_two_batches_equals_one_long_sequence(name):
    net = model(name, layers=2, streams=3)
    x, fresh, going_on = sequences(), jnp.array([True] * 3), jnp.array([False] * 3)
    whole = net(x, steps=6)
    for _ in range(2):  # the second time the state must have been forgotten
        first = net(x[:, :2], steps=2, restart=fresh)
        second = net(x[:, 2:], steps=4, restart=going_on)
        np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-6)
    with pytest.raises(UserError, match=r"model.streams=3 goes with batches of as many rows"):
        net(x[:2], steps=6, restart=fresh[:2])


def test_no_gradient_flows_into_the_batch_before():
    graph, state = nnx.split(model("lstm", streams=3))

    @jax.jit
    def last(x, state):
        net = nnx.merge(graph, state)
        net(x[:, :3], restart=jnp.full(3, True))
        return jnp.sum(net(x[:, 3:], restart=jnp.full(3, False)))

    gradient = jax.grad(last)(sequences(), state)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].any()


def test_the_forget_gate_starts_open():
    direction = model("lstm", moved=False).stack.layers[0][0]
    bias = direction.bias[...].reshape(4, HIDDEN)
    expected = np.zeros((4, HIDDEN))
    expected[FORGET_GATE] = 1
    np.testing.assert_array_equal(bias, expected)


def test_tokens_stand_for_one_hot_vectors():
    net = model("gru", shape=(6, 7))
    tokens = jnp.array([[0, 3, 6, 1, 1, 2]])
    np.testing.assert_array_equal(net(tokens), net(jax.nn.one_hot(tokens, 7)))
    embedded = model("gru", embedding=2, shape=(6, 7))
    assert embedded.stack.layers[0][0].kernel.shape == (2, 15)
    assert embedded(tokens).shape == (1, 4)


def test_networks_under_vmap_equal_networks_by_themselves():
    """The backward pass is written by hand."""
    nets = [model("lstm"), model("lstm", moved=False)]
    graph = nnx.graphdef(nets[0])
    params = [nnx.state(net) for net in nets]
    x = sequences()
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(x) ** 2))
    together = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *a: jnp.stack(a), *params))
    for index, alone in enumerate(params):
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, atol=1e-5),
            together,
            jax.jit(gradient)(alone),
        )
