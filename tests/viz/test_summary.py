"""Summaries against papers and hand calculation, for every model of the package."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import pytest

from experiments.ops import lstm, windows
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


def test_lenet5_has_the_connections_of_the_paper():
    summary = summarize(
        composed("model=lenet5", "model.c3=table", "model.pooling=weighted", "data=mnist")
    )
    rows = {row.name: row for row in (*summary.layers, *summary.blocks)}
    # LeCun et al. 1998, section II.B
    published = {"conv1": 122_304, "pool1": 5_880, "conv2": 151_600, "pool2": 2_000}
    published |= {"conv3": 48_120, "dense": 10_164}
    assert {name: rows[name].connections for name in published} == published
    # "340,908 connections" and 60,000 parameters; here each of the ten outputs has a bias
    assert summary.total("connections") == 340_908 + 10
    assert summary.total("parameters") == 60_000 + 850
    fields = [rows[name].receptive_field for name in ("conv1", "pool1", "conv2", "pool2")]
    assert fields == [(5, 5), (6, 6), (14, 14), (16, 16)]


COUNTED = [  # (layer, input, parameters, multiplications)
    ("{conv:{features:1,kernel:3,use_bias:false}}", (512, 512, 3), 27, 7_077_888),
    ("{conv:{features:64,kernel:7}}", (32, 32, 1), 3_200, 32 * 32 * 49 * 64),
    ("{conv:{features:10,kernel:5,padding:valid}}", (32, 32, 3), 760, 28 * 28 * 75 * 10),
    # each value is multiplied by each of the kernel's
    ("{conv_transpose:{features:5,kernel:4}}", (6, 6, 2), 16 * 10 + 5, 36 * 2 * 16 * 5),
]


@pytest.mark.parametrize(("layer", "shape", "parameters", "multiplications"), COUNTED)
def test_a_convolution_counts_as_by_hand(layer, shape, parameters, multiplications):
    data = ["data=tfds", "data.name=none", f"data.input_shape={list(shape)}", "data.num_classes=3"]
    layers = f"model.layers=[{layer},global_avg_pool,{{dense:classes}}]"
    first = summarize(composed("model=cnn", layers, *data)).layers[0]
    assert (first.parameters, first.multiplications) == (parameters, multiplications)


def test_googlenet_has_the_rows_of_table_1():
    summary = summarize(composed("model=googlenet", "data=imagenet2012"))
    rows = [block for block in summary.blocks if block.name.startswith("stages")]
    sides, channels, expected = (28, 28, 14, 14, 14, 14, 14, 7, 7), 192, []
    widths = itertools.chain(*composed("model=googlenet")["model"]["modules"])
    for side, (one, reduce3, three, reduce5, five, pooled) in zip(sides, widths, strict=True):
        products = channels * (one + reduce3 + reduce5 + pooled) + 9 * reduce3 * three
        products += 25 * reduce5 * five
        biases = one + reduce3 + three + reduce5 + five + pooled
        channels = one + three + five + pooled
        expected.append(((side, side, channels), products + biases, side**2 * products))
    assert [(r.output_shape, r.parameters, r.multiplications) for r in rows] == expected
    # the column "ops"; for 5a, which is 51 M, the table has 54 M
    millions = [128, 304, 73, 88, 100, 119, 170, 51, 71]
    assert [r.multiplications / 1e6 for r in rows] == pytest.approx(millions, abs=1)
    assert summary.depth == 22  # "22 layers deep when counting only layers with parameters"
    alone = summary.auxiliary
    assert summary.total("parameters") - alone.parameters == 6_998_552
    hidden = 4 * 4 * 128 * 1024 + 1024 * 1000  # the paper's two dense layers after 1x1 of 4x4
    assert alone.multiplications == 2 * hidden + 4 * 4 * 128 * (512 + 528)
    titles = ("#1x1", "#3x3 reduce", "#5x5 reduce", "pool proj", "#3x3", "#5x5")
    inside = [x for x in summary.layers if x.name.startswith("stages.0.0.") and x.title]
    assert [row.title for row in rows[:2]] == ["inception (3a)", "inception (3b)"]
    assert [(x.title, x.output_shape[-1]) for x in inside] == list(
        zip(titles, (64, 96, 16, 32, 128, 32), strict=True)
    )
    convolutions = [x for x in summary.layers if x.kind == "convolutional" and not x.training_only]
    assert len(convolutions) == 57
    assert summary.kinds["dense"].parameters == 1_025_000 + 2 * (2_098_176 + 1_025_000)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vae", "data=digits"],  # whose decoder draws a sample and the mean
        ["model=gan", "data=ring"],  # whose discriminator sees three batches
        ["model=mlp", "data=digits", "eval.tta=shifts"],
    ],
    ids=["vae", "gan", "tta"],
)
def test_dense_layers_multiply_once_by_each_weight(overrides):
    summary = summarize(composed(*overrides))
    dense = [layer for layer in summary.layers if layer.kind == "dense"]
    assert summary.total("connections") == sum(layer.parameters for layer in dense)
    biases = sum(layer.output_shape[-1] for layer in dense)
    assert summary.total("multiplications") == summary.total("connections") - biases


def test_resizing_is_apart_from_the_network():
    options = ["model=lenet5", "model.c3=table"]
    resized, native = (summarize(composed(*options, f"data={n}")) for n in ("digits", "mnist"))
    assert resized.total("connections") == native.total("connections")
    assert resized.total("multiplications") == native.total("multiplications")
    assert resized.resizing == 28 * 8 * 8 + 28 * 28 * 8
    assert resized.layers[0].name == "resizing"


def test_a_decoder_that_reads_its_own_output_is_as_deep_as_its_layers():
    summary = summarize(composed("model=encoder_decoder", "data=adding"))
    assert summary.depth == 3
    assert summary.kinds["recurrent"].parameters == 67_072 + 66_560


def fields_by_recurrence(windows):
    """The receptive field after each (kernel, stride): r + (k − 1) j, where j is of all strides."""
    field, jump = 1, 1
    for kernel, stride in windows:
        field, jump = field + (kernel - 1) * jump, jump * stride
        yield (field, field)


def resnet50(first, second):
    """(kernel, stride) of a ResNet-50, where a stage begins with these strides of 1x1 and 3x3."""
    windows = [(7, 2), (3, 2)]
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            halves = stage > 0 and block == 0
            windows += [(1, first if halves else 1), (3, second if halves else 1), (1, 1)]
    return windows


@pytest.mark.parametrize(
    ("overrides", "windows", "depth", "last"),
    [
        (["vgg16"], [*[(3, 1), (3, 1), (2, 2)] * 2, *[*[(3, 1)] * 3, (2, 2)] * 3], 16, 212),
        pytest.param(["resnet50"], resnet50(1, 2), 50, 427, marks=pytest.mark.slow),
        # of the paper's own, as stated by Araujo et al. 2019, "Computing receptive fields"
        (["resnet50", "model.stride_on=1x1"], resnet50(2, 1), 50, 483),
    ],
    ids=["vgg16", "resnet50", "resnet50_paper"],
)
def test_receptive_fields_follow_from_kernels_and_strides(overrides, windows, depth, last):
    summary = summarize(composed(f"model={overrides[0]}", *overrides[1:], "data=imagenet2012"))
    weighted = [x for x in summary.layers if x.multiplications or "max_pool" in x.name]
    found = [
        x.receptive_field for x in weighted if x.receptive_field and "projection" not in x.name
    ]
    assert found == list(fields_by_recurrence(windows))
    assert summary.receptive_field == found[-1] == (last, last)
    assert summary.depth == depth


def test_what_is_frozen_and_what_a_block_of_a_loop_has_seen():
    summary = summarize(composed("model=resnet44", "data=cifar10", "freeze=[stages.0]"))
    blocks = {block.name: block for block in summary.blocks}
    assert blocks["stages.0.1.block[5]"].receptive_field == (31, 31)  # 1 + 2 · 15
    assert summary.depth == 44
    frozen = 7 * (2 * 9 * 16 * 16 + 4 * 16)
    assert summary.total("frozen") == frozen
    assert sum(block.frozen for block in summary.blocks) == frozen
    assert summary.kinds["normalisation"].frozen == 7 * 4 * 16


@pytest.mark.slow
def test_a_dense_block_is_as_deep_as_its_layers():
    summary = summarize(composed("model=densenet_bc_100_12", "data=cifar10"))
    assert summary.depth == 100
    assert summary.receptive_field[0] == 3 + 16 * 2 + 1 + 16 * 4 + 2 + 16 * 8


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
    assert summary.depth > 0
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
def test_convolutions_of_the_library_cost_the_same(pads):
    x, kernel = jnp.ones((4, 2, 9, 9, 8)), jnp.ones((4, 3, 3, 8, 12))
    trials = jax.vmap(lambda x, kernel: windows.multiply_windows(x, kernel, pads))
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
    assert written["kinds"]["convolutional"]["parameters"] == 14_714_688
    assert (written["depth"], written["receptive_field"]) == (16, [212, 212])
