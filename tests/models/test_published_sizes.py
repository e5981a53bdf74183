"""Parameter counts against the papers and sums over the layers; nothing is allocated."""

import jax
import pytest
from flax import nnx

from experiments.core.config import build, check
from experiments.core.params import count_parameters, variables
from experiments.errors import UserError
from support import composed


def parameters(name, *overrides, shape, classes):
    """The number of parameters, and of those in each top-level part."""
    config = composed(f"model={name}", *(f"model.{o}" for o in overrides))["model"]
    check(config, "model")

    def initial():
        net = build(
            config,
            input_shape=shape,
            num_classes=classes,
            kernel_init=jax.nn.initializers.zeros,
            rngs=nnx.Rngs(params=0),
        )
        return variables(net)[0]

    parts = {part: count_parameters(tree) for part, tree in jax.eval_shape(initial).items()}
    return sum(parts.values()), parts


IMAGENET = [  # at 224x224 and 1000 classes
    ("alexnet", ["groups=2"], 60_965_224),
    ("alexnet", [], 62_378_344),
    ("alexnet_single", [], 61_100_840),
    ("vgg11", [], 132_863_336),
    ("vgg13", [], 133_047_848),
    ("vgg16", [], 138_357_544),
    # 1x1 for 3x3 in conv3_3, conv4_3 and conv5_3: 134 M in table 2
    ("vgg16_c", [], 138_357_544 - 8 * (256**2 + 2 * 512**2)),
    ("vgg19", [], 143_667_240),
    ("googlenet", ["auxiliary_weight=0.0"], 6_998_552),
    # with 3x3 in place of 5x5: the widespread PyTorch definition, with and without auxiliaries
    ("googlenet_bn", ["auxiliary_weight=0.0", "large_kernel=3"], 6_624_904),
    ("googlenet_bn", ["large_kernel=3"], 13_004_888),
    ("resnet18", [], 11_689_512),
    ("resnet34", [], 21_797_672),
    ("resnet50", [], 25_557_032),
    ("resnet50", ["stride_on=1x1"], 25_557_032),
    ("resnet101", [], 44_549_160),
    ("resnet152", [], 60_192_808),
    ("densenet121", [], 7_978_856),
    ("densenet169", [], 14_149_480),
    ("densenet201", [], 20_013_928),
    ("densenet161", [], 28_681_000),
]


@pytest.mark.parametrize(("name", "overrides", "published"), IMAGENET)
def test_parameters_at_the_published_input(name, overrides, published):
    found, _ = parameters(name, *overrides, shape=(224, 224, 3), classes=1000)
    assert found == published


def residual(depth):
    """Sum over the layers of the CIFAR-10 ResNet of `depth` layers, with shortcuts of zeros."""
    n = (depth - 2) // 6
    stages = 0
    for channels, features in ((16, 16), (16, 32), (32, 64)):
        stages += 9 * features * (channels + (2 * n - 1) * features) + 2 * n * 2 * features
    return 9 * 3 * 16 + 2 * 16 + stages + 64 * 10 + 10


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_small_resnets_follow_from_their_formula(depth):
    # 0.27, 0.46, 0.66, 0.85 and 1.7 M in table 6; a shortcut of zeros has no parameters, so the
    # plain network has as many
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
    for kind in ("resnet", "plain"):
        found, _ = parameters(f"{kind}{depth}", shape=(32, 32, 3), classes=10)
        assert found == residual(depth)
    assert found / 1e6 == pytest.approx(millions[depth], abs=0.03 if depth == 110 else 0.005)
    # with 1x1 convolutions instead: two more, of 16x32 and 32x64, each with its normalisation
    projected, _ = parameters(
        f"resnet{depth}", "shortcut=projection", shape=(32, 32, 3), classes=10
    )
    assert projected == residual(depth) + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def dense(depth, growth, channels, *, bottleneck, theta):
    """Sum over the layers of a CIFAR-10 DenseNet."""
    layers = (depth - 4) // (6 if bottleneck else 3)
    total = 9 * 3 * channels
    for block in range(3):
        for _ in range(layers):
            width = 4 * growth
            if bottleneck:
                total += 2 * channels + channels * width + 2 * width + 9 * width * growth
            else:
                total += 2 * channels + 9 * channels * growth
            channels += growth
        if block < 2:
            total += 2 * channels + channels * int(theta * channels)
            channels = int(theta * channels)
    return total + 2 * channels + channels * 10 + 10


def test_the_small_densenets_follow_from_their_formula():
    # table 2: 1.0 M (L = 40, k = 12) and 0.8 M (BC, L = 100, k = 12)
    found, _ = parameters("densenet40_12", shape=(32, 32, 3), classes=10)
    assert found == dense(40, 12, 16, bottleneck=False, theta=1) == 1_019_722
    found, _ = parameters("densenet_bc_100_12", shape=(32, 32, 3), classes=10)
    assert found == dense(100, 12, 24, bottleneck=True, theta=0.5) == 769_162


def test_zfnet_is_alexnet_with_smaller_first_kernels():
    # the maps after the last pooling are 6x6 as in AlexNet, so only the first two layers differ
    alexnet, _ = parameters("alexnet", shape=(224, 224, 3), classes=1000)
    found, parts = parameters("zfnet", shape=(224, 224, 3), classes=1000)
    first = (7 * 7 * 3 + 1) * 96
    assert found == alexnet - (11 * 11 * 3 + 1) * 96 + first == 62_357_608
    assert parts["hidden"] == (6 * 6 * 256 + 1) * 4096 + (4096 + 1) * 4096


def test_nin_is_the_sum_of_its_mlpconv_blocks():
    large = (11 * 11 * 3 + 1) * 96 + 2 * (96 + 1) * 96
    large += (5 * 5 * 96 + 1) * 256 + 2 * (256 + 1) * 256
    large += (3 * 3 * 256 + 1) * 384 + 2 * (384 + 1) * 384
    large += (3 * 3 * 384 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 1000
    assert parameters("nin", shape=(224, 224, 3), classes=1000)[0] == large == 7_595_176
    small = (5 * 5 * 3 + 1) * 192 + (192 + 1) * 160 + (160 + 1) * 96
    small += (5 * 5 * 96 + 1) * 192 + 2 * (192 + 1) * 192
    small += (3 * 3 * 192 + 1) * 192 + (192 + 1) * 192 + (192 + 1) * 10
    assert parameters("nin", shape=(32, 32, 3), classes=10)[0] == small == 966_986


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_pre_activation_moves_normalisations(name):
    plain, _ = parameters(name, shape=(224, 224, 3), classes=1000)
    moved, parts = parameters(name, "pre_activation=true", shape=(224, 224, 3), classes=1000)
    # per block the normalisation of the output gives way to one of the input, those of the
    # projections go, and one at the end takes the place of the one after the stem
    outputs = {"resnet18": [64, 128, 256, 512], "resnet50": [256, 512, 1024, 2048]}[name]
    inputs = [64, *outputs[:-1]]
    projected = outputs if name == "resnet50" else outputs[1:]
    change = sum(2 * (i - o) for i, o in zip(inputs, outputs, strict=True))
    change += 2 * (outputs[-1] - 64) - sum(2 * o for o in projected)
    assert moved == plain + change
    assert parts["last_norm"] == 2 * outputs[-1]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["densenet121", "model.compression=0"], "model.compression=0: must be greater than 0"),
        (["densenet121", "model.compression=1.5"], "model.compression=1.5: must be"),
        (["resnet18", "model.zero_gamma=true", "model.shortcut=none"], "needs shortcuts"),
        (["resnet18", "model.zero_gamma=true", "model.pre_activation=true"], "does not go with"),
        (["resnet18", "model.stages=[2,2]"], "as many numbers"),
        (["resnet18", "model.stride_on=1x1"], "stride_on=1x1 needs model.block=bottleneck"),
        (["alexnet", "model.groups=5"], "model.groups=5 does not divide"),
        (["alexnet", "model.widths=[8,8]"], "must be five numbers"),
        (["zfnet", "model.widths=[8,8]"], "must be five numbers"),
        (["googlenet", "model.modules=[[[8,8,8]]]"], "model.modules.0.0=[8, 8, 8]: must be six"),
    ],
)
def test_a_bad_argument_is_named(overrides, complaint):
    name, *rest = overrides
    with pytest.raises(UserError) as raised:
        check(composed(f"model={name}", *rest))
    assert complaint in str(raised.value)
