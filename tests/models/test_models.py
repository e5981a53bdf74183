"""Models against the numbers in their papers, and every shipped model through the same checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from experiments.core.config import build, locate
from experiments.core.experiment import Experiment
from experiments.core.params import count_parameters, variables
from experiments.models.layers import BatchNorm, Dropout, step
from experiments.ops import backend
from support import choices, composed

# of kinds of which a network of fewer layers is tested
DEEPER = {"plain32", "plain44", "plain56", "plain110", "resnet32", "resnet44", "resnet56"}
DEEPER |= {"resnet101", "resnet110", "resnet152", "densenet161", "densenet169", "densenet201"}


def model(*overrides, shape, classes=10, init=None):
    return build(
        composed(*overrides)["model"],
        input_shape=shape,
        num_classes=classes,
        kernel_init=init or jax.nn.initializers.he_normal(),
        rngs=nnx.Rngs(params=0),
    )


def layer_counts(*overrides, shape, classes=10):
    """Parameters by the name of the top-level layer; nothing is allocated."""
    params = jax.eval_shape(lambda: variables(model(*overrides, shape=shape, classes=classes))[0])
    return {name: count_parameters(layer) for name, layer in params.items()}


def test_lenet5_has_the_published_layers():
    published = {"conv1": 156, "conv2": 2_416, "conv3": 48_120, "dense": 10_164, "output": 850}
    for size in (32, 28):  # 28x28 is padded to 32x32
        assert layer_counts("model=lenet5", shape=(size, size, 1)) == published
    assert sum(published.values()) == 61_706


def test_lenet5_has_the_60_000_parameters_of_the_paper():
    options = ["model.c3=table", "model.pooling=weighted"]
    counts = layer_counts("model=lenet5", *options, shape=(32, 32, 1))
    # section II.B; the paper's output layer of fixed centres is a dense one here
    own = {"conv1": 156, "pool1": 12, "conv2": 1_516, "pool2": 32, "conv3": 48_120, "dense": 10_164}
    assert counts == own | {"output": 850}
    assert sum(own.values()) == 60_000


def test_each_map_of_c3_reads_the_maps_of_table_i():
    table = ["X...XXX..XXXX.XX", "XX...XXX..XXXX.X", "XXX...XXX..X.XXX"]
    table += [".XXX..XXXX..X.XX", "..XXX..XXXX.XX.X", "...XXX..XXXX.XXX"]
    net = model("model=lenet5", "model.c3=table", shape=(32, 32, 1))
    for number, row in enumerate(table):  # of S2, where only this map is not 0
        maps = jnp.zeros((1, 5, 5, 6)).at[..., number].set(1.0)
        seen = np.abs(np.asarray(net.conv2(maps)[0, 0, 0])) > 0
        assert "".join(np.where(seen, "X", ".")) == row
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 6))
    with backend.xla_only():  # as accelerators compute it
        by_groups = net.conv2(x)
    np.testing.assert_allclose(net.conv2(x), by_groups, atol=1e-5)


def test_vgg16_has_the_published_parameters():
    counts = layer_counts("model=vgg16", shape=(224, 224, 3), classes=1000)
    assert sum(counts.values()) == 138_357_544
    # the widely used batch-normalised variant: a scale and an offset for each of 4,224 channels
    normalised = layer_counts(
        "model=vgg16", "model.batch_norm=true", shape=(224, 224, 3), classes=1000
    )
    assert sum(normalised.values()) == 138_357_544 + 2 * 4_224


def test_vgg16_has_the_same_convolutions_on_small_images():
    large = layer_counts("model=vgg16", shape=(224, 224, 3))
    small = layer_counts("model=vgg16", shape=(32, 32, 3))
    assert small["stages"] == large["stages"] == 14_714_688
    assert small["output"] == 512 * 10 + 10


@pytest.mark.parametrize(
    "name",
    [n if n not in DEEPER else pytest.param(n, marks=pytest.mark.slow) for n in choices("model")],
)
def test_every_model_has_one_output_per_class_or_trains_by_its_own_objective(name):
    config = composed(f"model={name}")
    if config["objective"]["_target_"].endswith(".Classification"):
        size = getattr(locate(config["model"]["_target_"]), "minimum_size", 8)

        def outputs():
            net = model(f"model={name}", shape=(size, size, 1), classes=7)
            net.train()
            return net(jnp.ones((2, size, size, 1)), rngs=nnx.Rngs(dropout=0))

        # logits, and those of auxiliary classifiers
        for output in jax.tree.leaves(jax.eval_shape(outputs)):
            assert output.shape == (2, 7)
        return
    data = build(config["data"])
    core = Experiment(config, data.spec, data.pipeline, steps_per_epoch=1, total_steps=1)
    shapes = {"image": ((4, 8, 8, 1), "uint8"), "label": ((4,), "int32")}
    batch = {n: jax.ShapeDtypeStruct(shape, dtype) for n, (shape, dtype) in shapes.items()}
    state = core.abstract_state({})
    after, metrics = jax.eval_shape(core.train_step, state, batch, {}, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "elu", "gelu", "swish"])
def test_mlp_gradients_equal_finite_differences(activation):
    with jax.enable_x64(True):
        net = model("model=mlp", "model.hidden=[5]", f"model.activation={activation}", shape=(4,))
        net.eval()
        graph, params = nnx.split(net)
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        x = jax.random.normal(jax.random.key(0), (3, 4))

        def total(p):
            return jnp.sum(jnp.sin(nnx.merge(graph, p)(x)))

        check_grads(total, (params,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_the_perceptron_learns_by_rosenblatts_rule():
    net = model("model=perceptron", shape=(4,), classes=2)
    x, y = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([1.0, 0.0])
    graph, params = nnx.split(net)

    def loss(p):
        return 0.5 * jnp.sum((y - nnx.merge(graph, p)(x[None])[0]) ** 2)

    outputs = net(x[None])[0]
    assert set(np.asarray(outputs)) <= {0.0, 1.0}
    gradient = jax.grad(loss)(params)["output"]["kernel"][...]
    np.testing.assert_allclose(gradient, -np.outer(x, y - outputs), atol=1e-6)
    assert float(step(jnp.float32(0))) == 1.0


def test_batch_norm_normalises_and_follows_the_statistics():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (64, 5, 5, 4))
    layer = BatchNorm(4)
    layer.train()
    y = layer(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(layer.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    layer.eval()
    expected = (x - layer.mean[...]) / np.sqrt(layer.var[...] + 1e-5)
    np.testing.assert_allclose(layer(x), expected, atol=1e-4)
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_dropout_keeps_the_expectation_and_takes_a_traced_rate():
    x = jnp.ones((100, 100))

    @jax.jit
    def drop(rate):
        return Dropout(rate)(x, rngs=nnx.Rngs(dropout=1))

    y = drop(0.25)
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert y.mean() == pytest.approx(1.0, abs=0.02)
    layer = Dropout(0.25)
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
