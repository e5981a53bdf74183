"""Networks made from a list of layers: their outputs, and the errors for wrong lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from experiments.core.config import build, check
from experiments.core.params import count_parameters, variables
from experiments.errors import UserError
from experiments.models.cnn_layers import KINDS, Site
from support import composed

LENET5 = """[{conv:{features:6,kernel:5,padding:valid}},tanh,{avg_pool:2},
    {conv:{features:16,kernel:5,padding:valid}},tanh,{avg_pool:2},
    flatten,{dense:120},tanh,{dense:84},tanh,{dense:classes}]""".replace("\n    ", "")


def network(layers, shape, classes=10):
    config = composed("model=cnn", f"model.layers={layers}")["model"]
    check({"model": config})
    return build(
        config,
        input_shape=shape,
        num_classes=classes,
        kernel_init=jax.nn.initializers.lecun_normal(),
        rngs=nnx.Rngs(0),
    )


def layer(kind, shape, **arguments):
    init = {"kernel_init": jax.nn.initializers.normal(), "rngs": nnx.Rngs(0)}
    site = Site(shape, 10, init)
    return KINDS[kind](site, **arguments)


def test_lenet5_as_a_list_is_lenet5():
    shape = (32, 32, 1)
    own = network(LENET5, shape)
    published = build(
        composed("model=lenet5")["model"],
        input_shape=shape,
        num_classes=10,
        kernel_init=jax.nn.initializers.lecun_normal(),
        rngs=nnx.Rngs(0),
    )
    assert count_parameters(variables(own)[0]) == 61_706
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    np.testing.assert_allclose(own(x), published(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(12,), (7, 9), (5, 6, 7)], ids=["1d", "2d", "3d"])
def test_a_flipped_kernel_makes_true_convolution(shape):
    x = np.asarray(jax.random.normal(jax.random.key(0), shape))
    for flip, reference in ((True, scipy.signal.convolve), (False, scipy.signal.correlate)):
        conv = layer("conv", (*shape, 1), features=1, kernel=3, padding="valid", flip_kernel=flip)
        kernel = np.asarray(conv.kernel[...])[..., 0, 0]
        found = conv(x[None, ..., None])[0, ..., 0]
        np.testing.assert_allclose(found, reference(x, kernel, mode="valid"), atol=1e-5)


@pytest.mark.parametrize("factorize", ["asymmetric", "smaller"])
@pytest.mark.parametrize(
    ("padding", "stride", "dilation"), [("same", 1, 1), ("valid", 2, 1), ("same", 1, 2)]
)
def test_a_factorized_convolution_has_the_window_of_the_whole_one(
    factorize, padding, stride, dilation
):
    arguments = {"features": 2, "kernel": 5, "stride": stride, "padding": padding}
    arguments["dilation"] = dilation
    whole = layer("conv", (15, 15, 1), **arguments)
    parts = layer("conv", (15, 15, 1), factorize=factorize, between="identity", **arguments)
    seen = []
    for net in (whole, parts):
        for module in (net, *getattr(net, "convs", ())):  # an impulse spreads over the window
            if hasattr(module, "kernel"):
                module.kernel[...] = jnp.ones_like(module.kernel[...])
        seen.append(np.asarray(net(jnp.zeros((1, 15, 15, 1)).at[0, 7, 7].set(1.0))) != 0)
    np.testing.assert_array_equal(*seen)
    weights = {"asymmetric": 5 * 2 + 5 * 2 * 2, "smaller": 9 * 2 + 9 * 2 * 2}[factorize]
    assert count_parameters(variables(parts)[0]) == weights + 2 + 2


def test_depthwise_separable_convolution_has_its_few_parameters():
    net = network("[{depthwise:3},{conv:{features:6,kernel:1}},global_max_pool]", (8, 8, 4), 6)
    assert count_parameters(variables(net)[0]) == (9 + 1) * 4 + (4 + 1) * 6


def test_weighted_pooling_has_a_coefficient_and_a_bias_per_channel():
    pool = layer("weighted_avg_pool", (4, 4, 6), window=2)
    assert count_parameters(variables(pool)[0]) == 12  # as S2 of LeNet-5
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 6))
    mean = x.reshape(1, 2, 2, 2, 2, 6).mean((2, 4))
    np.testing.assert_allclose(pool(x), mean, atol=1e-6)
    pool.scale[...], pool.bias[...] = 3 * jnp.ones(6), jnp.ones(6)
    np.testing.assert_allclose(pool(x), 3 * mean + 1, atol=1e-5)


def test_an_image_can_be_read_as_a_signal_or_a_volume():
    layers = (
        "[{{reshape:{shape}}},{{conv:{{features:4,kernel:3}}}},global_avg_pool,{{dense:classes}}]"
    )
    for shape, parameters in (("[64,1]", 3 * 4 + 4 + 50), ("[4,4,4,1]", 27 * 4 + 4 + 50)):
        net = network(layers.format(shape=shape), (8, 8, 1))
        assert count_parameters(variables(net)[0]) == parameters
        assert net(jnp.ones((2, 8, 8, 1))).shape == (2, 10)


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ("[relu,{cnv:{features:4}}]", "model.layers[1]: there is no layer 'cnv'; did you mean"),
        ("[{conv:{features:4}}]", "model.layers[0].conv: missing a required argument: 'kernel'"),
        ("[{conv:{features:4,kernel:3,strid:2}}]", "layers[0].conv.strid: no such argument; did"),
        ("[{dropout:1.5}]", "model.layers[0].dropout.rate=1.5: must be at least 0 and less than 1"),
        ("[{relu:1}]", "model.layers[0].relu.value: no such argument"),
        ("[{max_pool:2,relu:null}]", "model.layers[0]: an entry is one layer"),
        (
            "[{max_pool:4},{max_pool:3}]",
            "layers[1] (max_pool), whose input is 2x2x1: a window of 3",
        ),
        ("[{conv:{features:4,kernel:3,groups:2}}]", "groups=2 does not divide 1 and 4 channels"),
        ("[{conv:{features:4,kernel:[3,3,3]}}]", "must be one number, or 2: one per dimension"),
        ("[{dense:classes}]", "model.layers[0] (dense), whose input is 8x8x1: a dense layer needs"),
        ("[flatten,{dense:7}]", "ends in 7, which is not one score for each of 10 classes"),
        ("[]", "model.layers ends in 8x8x1"),
        ("[relu,whiten]", "model.layers[1]: whiten reads the images, so it comes first"),
    ],
)
def test_a_wrong_list_ends_in_a_line_that_names_the_layer(layers, complaint):
    with pytest.raises(UserError) as error:
        network(layers, (8, 8, 1))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
