"""Convolutional networks: gradients, options and the outputs of auxiliary classifiers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.config import build
from experiments.core.experiment import Experiment
from experiments.errors import UserError
from experiments.models.resnet import Block, Repeated
from experiments.objectives.classification import Classification, targets_of
from support import composed

NARROW = {  # every family, small enough for finite differences
    "alexnet": ["widths=[2,2,4,4,2]", "small_hidden=[3]", "groups=2"],
    "zfnet": ["widths=[2,2,2,2,2]", "small_hidden=[3]"],
    "vgg16_bn": ["stages=[1,1]", "widths=[2,3]"],
    "nin": ["small_widths=[[2,2],[2,2]]"],
    "googlenet": [
        "stem=[2,2,2]",
        "modules=[[[1,1,1,1,1,1]],[[1,1,1,1,1,1]]]",
        "auxiliary_hidden=8",
    ],
    "resnet50": ["stages=[1,1]", "widths=[1,2]"],
    "resnet44": ["stages=[7]", "widths=[2]"],
    "resnet20": ["stages=[1,1]", "widths=[2,3]", "pre_activation=true"],
    "densenet_bc_100_12": ["blocks=[1,2]", "growth_rate=1", "initial=2"],
}

QUICK = ("resnet20",)  # the others take seconds to compile


def network(name, *overrides, shape, classes=3, key=0):
    return build(
        composed(f"model={name}", *(f"model.{o}" for o in overrides))["model"],
        input_shape=shape,
        num_classes=classes,
        kernel_init=jax.nn.initializers.he_normal(),
        rngs=nnx.Rngs(params=key),
    )


def noise(shape, scale):
    """The same random numbers in every call with one rank."""
    return jnp.asarray(scale * np.random.default_rng(len(shape)).normal(size=shape))


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow, id=name)
        for name in NARROW
    ],
)
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        net = network(name, *NARROW[name], shape=(32, 32, 1))
        net.train()
        graph, params, rest = nnx.split(net, nnx.Param, ...)
        rest = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), rest)
        # biases other than 0: with a bias of 0 a rectifier's input can be exactly 0
        params = jax.tree.map(lambda a: a + noise(a.shape, 0.1), params)
        x = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))

        @jax.jit
        def total(params):
            outputs = nnx.merge(graph, params, rest, copy=True)(x, rngs=nnx.Rngs(dropout=2))
            return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(outputs))

        gradient = jax.jit(jax.grad(total))(params)
        direction = jax.tree.map(lambda a: noise(a.shape, 1.0), params)
        along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))

        def moved(step):
            return total(jax.tree.map(lambda p, d: p + step * d, params, direction))

        # small, so that hardly any rectifier crosses 0 and hardly any maximum moves
        step = 1e-7
        difference = float(moved(step) - moved(-step)) / (2 * step)
        assert float(along) == pytest.approx(difference, rel=1e-5)
        assert float(abs(along)) > 1e-3


def test_repeated_blocks_equal_blocks_one_after_another():
    init, rngs = jax.nn.initializers.he_normal(), nnx.Rngs(params=0)
    arguments = {"shortcut": "identity", "zero_gamma": False, "pre_activation": False}
    make = functools.partial(Block, 4, 4, kind="basic", stride=1, rngs=rngs, **arguments)
    repeated = Repeated(make, 3, kernel_init=init, rngs=rngs)
    graph, weights = nnx.split(repeated.block)
    blocks = [
        nnx.merge(graph, jax.tree.map(lambda a, i=i: jnp.asarray(a)[i], weights)) for i in range(3)
    ]
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
    y = x
    for block in blocks:
        y = block(y)
    np.testing.assert_allclose(repeated(x), y, rtol=1e-5, atol=1e-5)
    for i, block in enumerate(blocks):  # and so do the running averages
        np.testing.assert_allclose(
            repeated.block.norms[1].var[...][i], block.norms[1].var[...], rtol=1e-5
        )
    assert not np.allclose(blocks[0].convs[0].kernel[...], blocks[1].convs[0].kernel[...])


def test_a_residual_block_with_zero_gamma_starts_as_the_identity():
    block = residual_block(shortcut="identity", zero_gamma=True)
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 6, 6, 4)))
    np.testing.assert_allclose(block(x), x, atol=1e-6)


def test_a_pre_activation_block_adds_to_its_input_unrectified():
    block = residual_block(shortcut="identity", pre_activation=True, init=jax.nn.initializers.zeros)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    np.testing.assert_array_equal(block(x), x)


def test_an_identity_shortcut_drops_pixels_and_adds_zeros():
    block = residual_block(
        shortcut="identity", features=6, stride=2, init=jax.nn.initializers.zeros
    )
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 6, 6, 4)))
    expected = jnp.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(0, 2)])
    np.testing.assert_array_equal(block(x), expected)


def test_a_plain_block_without_weights_is_zero():
    block = residual_block(shortcut="none", init=jax.nn.initializers.zeros)
    assert not np.any(block(jnp.ones((1, 6, 6, 4))))


def residual_block(*, shortcut, features=4, stride=1, init=None, **options):
    block = Block(
        4,
        features,
        kind="basic",
        stride=stride,
        shortcut=shortcut,
        zero_gamma=options.get("zero_gamma", False),
        pre_activation=options.get("pre_activation", False),
        kernel_init=init or jax.nn.initializers.he_normal(),
        rngs=nnx.Rngs(params=0),
    )
    block.train()
    return block


WIDTHS = {  # of the last maps, at 224 and at 32 pixels
    "alexnet": (6, 3),
    "zfnet": (6, 3),
    "vgg16": (7, 1),
    "nin": (6, 8),
    "googlenet": (7, 4),
    "resnet18": (7, 4),
    "resnet50": (7, 4),
    "densenet121": (7, 4),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_maps_have_the_published_sizes(name):
    for size, width in zip((224, 32), WIDTHS[name], strict=True):
        net = jax.eval_shape(functools.partial(network, name, shape=(size, size, 3)))
        net.eval()
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        operations = jax.make_jaxpr(lambda net, x: net(x))(net, image).eqns
        shapes = [v.aval.shape for operation in operations for v in operation.outvars]
        last = [shape for shape in shapes if len(shape) == 4][-1]
        assert last[1:3] == (width, width)


@pytest.mark.slow
def test_auxiliary_losses_count_in_training_only():
    net = network("googlenet", *NARROW["googlenet"], "auxiliary_weight=0.3", shape=(32, 32, 1))

    def loss(outputs, targets):
        return jnp.sum((outputs - targets) ** 2, axis=-1)

    objective = Classification(loss=loss, head=None, num_classes=3)
    image = jax.random.normal(jax.random.key(0), (4, 32, 32, 1))
    batch = {"image": image, "label": jnp.arange(4) % 3}
    net.train()

    @jax.jit
    def training(net):
        rngs = [nnx.Rngs(dropout=0) for _ in range(2)]
        return objective(net, batch, rngs[0], 0), net(image, rngs=rngs[1])

    (values, logits), (main, *halfway) = training(net)
    target = targets_of(batch, objective.num_classes)
    assert len(halfway) == 1  # of two, as this one has no module 4d
    expected = loss(main, target) + 0.3 * loss(halfway[0], target)
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(values["main_loss"], loss(main, target), rtol=1e-5)
    np.testing.assert_allclose(logits, main, rtol=1e-5)
    net.eval()
    values, logits = jax.jit(lambda net: objective(net, batch, None, 0))(net)
    np.testing.assert_allclose(values["loss"], loss(logits, target), rtol=1e-6)
    assert "main_loss" not in values


def test_the_whole_googlenet_has_two_auxiliary_classifiers():
    def outputs():
        net = network("googlenet", shape=(224, 224, 3), classes=1000)
        net.train()
        return net(jnp.ones((1, 224, 224, 3)), rngs=nnx.Rngs(dropout=0))

    assert [y.shape for y in jax.eval_shape(outputs)] == [(1, 1000)] * 3


@pytest.mark.parametrize(("name", "takes"), [("vgg16", False), ("alexnet", False), ("nin", True)])
def test_small_images_are_accepted_where_the_network_allows_it(name, takes):
    config = composed(f"model={name}", "data=digits", "data.resize=false")
    data = build(config["data"])
    if takes:
        assert Experiment(config, data.spec, data.pipeline, 1, 1).input_shape == (8, 8, 1)
        return
    with pytest.raises(UserError, match=r"takes no images of 8x8: .*data.resize=true .* 32x32"):
        Experiment(config, data.spec, data.pipeline, 1, 1)
