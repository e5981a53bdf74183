"""Networks made from a list of layers: their outputs, and the errors for wrong lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.config import build, check
from experiments.core.params import count_parameters, variables
from experiments.errors import UserError
from experiments.models.cnn import KINDS
from experiments.models.cnn_layers import Site
from experiments.models.resnet import Block
from experiments.ops import backend, convolution
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


@pytest.mark.slow
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
    import scipy.signal  # takes a second to import, in each process that runs tests

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


@pytest.mark.parametrize(
    ("shape", "padding", "stride", "size"),
    [((5, 4), "valid", 2, (11, 9)), ((5, 4), "same", 2, (10, 8)), ((7,), 1, 3, (19,))],
)
def test_a_transposed_convolution_is_the_gradient_of_a_convolution(shape, padding, stride, size):
    dims = len(shape)
    up = layer("conv_transpose", (*shape, 3), features=2, kernel=3, stride=stride, padding=padding)
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    assert up(x).shape == (2, *size, 2)
    kernel = jnp.swapaxes(up.kernel[...], -1, -2)
    given = padding.upper() if isinstance(padding, str) else padding

    def down(y):
        return convolution.conv(y, kernel, strides=stride, padding=given)

    _, backwards = jax.vjp(down, jnp.zeros((2, *size, 2)))
    np.testing.assert_allclose(up(x), backwards(x)[0], atol=1e-5)
    with backend.xla_only():  # as accelerators compute it
        np.testing.assert_allclose(up(x), backwards(x)[0], atol=1e-5)
    impulse = jnp.zeros((1, *shape, 3)).at[(0, *[1] * dims, 0)].set(1.0)
    found = up(impulse)
    assert np.count_nonzero(found) == 3**dims * 2  # one copy of the kernel


def test_a_residual_block_as_a_list_is_that_of_resnet():
    conv = "{conv:{features:6,kernel:3,stride:STRIDE,use_bias:false}}"
    main = f"{conv.replace('STRIDE', '2')},batch_norm,relu,{conv.replace('STRIDE', '1')},batch_norm"
    shortcut = "{conv:{features:6,kernel:1,stride:2,use_bias:false}},batch_norm"
    layers = f"[{{skip:{{layers:[{main}],shortcut:[{shortcut}]}}}},relu,global_avg_pool]"
    own = network(layers, (8, 8, 4), classes=6)
    init = {"kernel_init": jax.nn.initializers.normal(), "rngs": nnx.Rngs(0)}
    options = {"kind": "basic", "shortcut": "projection", "zero_gamma": False}
    block = Block(4, 6, stride=2, pre_activation=False, **options, **init)
    inner, outer = own.skip1.layers, own.skip1.shortcut
    # the block's padding is 1, as `same` is at stride 1 only
    inner.conv1.padding = 1
    convs = [inner.conv1, inner.conv2, outer.conv1]
    for mine, theirs in zip(convs, [*block.convs, block.projection], strict=True):
        mine.kernel[...] = theirs.kernel[...]
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 4))
    np.testing.assert_allclose(own(x), block(x).mean((1, 2)), atol=1e-5)


@pytest.mark.slow
def test_a_skip_connection_can_join_maps_side_by_side():
    up = "{max_pool:2},{conv:{features:5,kernel:3}},{group_norm:5},{dropout:0.5}"
    up += ",{conv_transpose:{features:3,kernel:2}}"
    net = network(
        f"[{{skip:{{layers:[{up}],join:concatenate}}}},global_max_pool,layer_norm,{{dense:classes}}]",
        (8, 8, 2),
    )
    assert net.skip1(jnp.ones((1, 8, 8, 2)), rngs=nnx.Rngs(dropout=0)).shape == (1, 8, 8, 3 + 2)
    assert net.dense1.kernel.shape == (5, 10)
    x = jnp.ones((1, 8, 8, 2)).at[..., 1].set(7.0)
    found = net.skip1(x, rngs=nnx.Rngs(dropout=0))
    np.testing.assert_array_equal(found[..., 3:], x)


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
        ("[{skip:[relu,{cnv:4}]}]", "layers[0].skip.layers[1]: there is no layer 'cnv'; did you"),
        ("[{skip:{shortcut:[relu]}}]", "layers[0].skip: missing a required argument: 'layers'"),
        ("[{skip:3}]", "model.layers[0].skip.layers=3: must be a list"),
        ("[{skip:[{max_pool:2}]}]", "its layers give 4x4x1 and its shortcut 8x8x1; give both one"),
        ("[{skip:[{dense:4}]}]", "model.layers[0] (skip), whose input is 8x8x1: layers[0] (dense)"),
        ("[{skip:[whiten]}]", "model.layers[0].skip.layers[0]: whiten reads the images"),
        ("[{group_norm:2}]", "groups=2 does not divide 1 channels"),
        ("[{conv_transpose:{features:2,kernel:3,padding:3}}]", "padding of (3, 3) cuts off more"),
        ("[relu,whiten]", "model.layers[1]: whiten reads the images, so it comes first"),
    ],
)
def test_a_wrong_list_ends_in_a_line_that_names_the_layer(layers, complaint):
    with pytest.raises(UserError) as error:
        network(layers, (8, 8, 1))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
