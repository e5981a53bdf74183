"""Summaries against papers and hand calculation, for every model of the package."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from experiments.ops import lstm, product
from experiments.viz.flops import work
from experiments.viz.summary import summarize
from support import choices, composed

QUICK = ("cnn", "lenet5", "mlp", "perceptron", "resnet20", "vgg16")


def total_flops(function, *arguments):
    return work(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_lenet5_layer_by_layer():
    summary = summarize(composed("model=lenet5", "data=mnist"))
    found = {
        layer.name: (layer.output_shape, layer.arithmetic, layer.parameters, layer.flops)
        for layer in summary.layers
    }
    assert found == {  # at 28x28, padded to 32x32
        "conv1": ((28, 28, 6), "(5·5·1+1)·6", 156, 2 * 28 * 28 * 25 * 6),
        "avg_pool": ((14, 14, 6), "", 0, 0),
        "conv2": ((10, 10, 16), "(5·5·6+1)·16", 2_416, 2 * 10 * 10 * 25 * 6 * 16),
        "avg_pool_2": ((5, 5, 16), "", 0, 0),
        "conv3": ((120,), "(400+1)·120", 48_120, 2 * 400 * 120),
        "dense": ((84,), "(120+1)·84", 10_164, 2 * 120 * 84),
        "output": ((10,), "(84+1)·10", 850, 2 * 84 * 10),
    }
    assert summary.total("parameters") == 61_706
    # a training step: the gradients of weights and of inputs too, but not of the image
    first, *rest = (layer.flops for layer in summary.layers)
    assert summary.total("training_flops") == 128 * (2 * first + 3 * sum(rest))


def test_vgg16_has_the_published_multiply_adds():
    summary = summarize(composed("model=vgg16", "data=imagenet2012"))
    assert summary.total("parameters") == 138_357_544
    assert summary.total("flops") / 2 == pytest.approx(15.47e9, rel=1e-3)  # as torchvision states


@pytest.mark.parametrize("depth", [20, 44])  # of 44 a stage repeats six equal blocks in a loop
def test_repeated_blocks_are_shown_one_by_one(depth):
    layers = summarize(composed(f"model=resnet{depth}", "data=cifar10")).layers
    weighted = [layer for layer in layers if layer.flops]
    stage = (depth - 2) // 3
    sizes = [32] * (1 + stage) + [16] * stage + [8] * stage
    assert [layer.output_shape[0] for layer in weighted[:-1]] == sizes
    assert len(weighted) == depth
    products = {layer.flops for layer in weighted[2 : stage + 1]}
    assert products == {2 * 32 * 32 * 9 * 16 * 16}
    assert len({layer.name for layer in layers}) == len(layers)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in choices("model")
    ],
)
def test_the_arithmetic_of_every_model_gives_its_parameters(name):
    summary = summarize(composed(f"model={name}"))
    for layer in summary.layers:
        assert eval(layer.arithmetic.replace("·", "*") or "0") == layer.parameters
        assert layer.output_bytes == 4 * math.prod(layer.output_shape) * bool(layer.output_shape)
    assert summary.total("flops") > 0
    assert summary.total("training_flops") > summary.batch_size * summary.total("flops")


@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "groups"),
    [
        ((1, 1), "SAME", 1, 1),
        ((2, 2), "VALID", 1, 1),
        ((1, 1), "VALID", 2, 1),
        ((2, 1), "SAME", 1, 4),
    ],
)
def test_each_gradient_of_a_convolution_costs_as_much_as_the_convolution(
    strides, padding, dilation, groups
):
    x, kernel = jnp.ones((2, 9, 9, 8)), jnp.ones((3, 3, 8 // groups, 12))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    out = jax.eval_shape(conv, x, kernel)
    once = 2 * out.size * 9 * 8 // groups
    assert total_flops(conv, x, kernel) == once
    both = jax.grad(lambda *a: conv(*a).sum(), argnums=(0, 1))
    assert total_flops(both, x, kernel) == 3 * once


@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 0, 0, 0)])
def test_convolutions_on_matrix_units_cost_the_same(pads):
    x, kernel = jnp.ones((4, 2, 9, 9, 8)), jnp.ones((4, 3, 3, 8, 12))
    trials = jax.vmap(lambda x, kernel: product.multiply_windows(x, kernel, pads))
    out = jax.eval_shape(trials, x, kernel)
    once = 2 * out.size * 9 * 8
    assert total_flops(trials, x, kernel) == once
    assert total_flops(trials, x[:, :1], kernel) == once / 2
    both = jax.grad(lambda *a: trials(*a).sum(), argnums=(0, 1))
    assert total_flops(both, x, kernel) == 3 * once


def test_an_lstm_in_one_operation_costs_as_much_as_its_steps():
    steps, batch, inputs, hidden = 3, 4, 5, 6
    shapes = [(steps, batch, inputs), (inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    given = [jnp.ones(shape) for shape in shapes]
    start = (jnp.ones((batch, hidden)),) * 2

    def run(*given):
        return lstm.lstm(False, *given, start, None)[0]

    once = 2 * steps * batch * 4 * hidden * (inputs + hidden)
    assert total_flops(run, *given) == once
    gradients = jax.grad(lambda *given: run(*given).sum(), argnums=range(4))
    assert total_flops(gradients, *given) == 3 * once


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x, w):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, w), None), x, length=7)[0]

    assert total_flops(loop, jnp.ones((2, 3)), jnp.ones((3, 3))) == 7 * 2 * 2 * 3 * 3


def test_the_command_needs_neither_data_nor_a_compiler(run_cli, tmp_path, capsys):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    )
    try:
        code, errors = run_cli(
            "mode=summary",
            "model=vgg16",
            "data=imagenet2012",
            f"data.dir={tmp_path / 'none'}",
            folder=tmp_path / "run",
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert (code, errors) == (0, "")
    assert not [name for name in compiled if "backend_compile" in name]
    written = json.loads((tmp_path / "run/model_summary.json").read_text())
    assert written["total_parameters"] == 138_357_544
    assert written["layers"][0]["output_shape"] == [224, 224, 64]
    assert {"name", "output_shape", "parameters", "flops"} <= set(written["layers"][0])
