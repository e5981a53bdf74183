"""Weights in torchvision's names and layout give the logits that PyTorch gives with them.

The PyTorch modules here are the architectures as torchvision lays them out, in any width.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.core.config import build
from experiments.core.params import merged, variables
from experiments.core.transfer import agreement, fitted, named
from experiments.models.torchvision import published, read_published
from support import composed

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install -e '.[bench]'")
F = torch.nn.functional


def conv(n_in, n_out, kernel, stride=1, padding=0, bias=False):
    return torch.nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=bias)


class Tree(torch.nn.Module):
    """A module whose submodules have dotted names, as in a `state_dict`."""

    def put(self, name, module):
        *path, last = name.split(".")
        node = self
        for part in path:
            if part not in node._modules:
                node.add_module(part, torch.nn.Module())
            node = node._modules[part]
        node.add_module(last, module)

    def at(self, name):
        return self.get_submodule(name)


class TorchVGG(Tree):
    def __init__(self, stages, widths, hidden, batch_norm, classes):
        super().__init__()
        layers, channels = [], 3
        for depth, width in zip(stages, widths, strict=True):
            for _ in range(depth):
                layers.append(conv(channels, width, 3, padding=1, bias=True))
                layers += [torch.nn.BatchNorm2d(width)] * batch_norm + [torch.nn.ReLU()]
                channels = width
            layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        sizes = [channels * 49, *hidden, classes]
        for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            self.put(f"classifier.{3 * index}", torch.nn.Linear(n_in, n_out))

    def forward(self, x):
        x = self.features(x).flatten(1)
        for index in (0, 3):
            x = F.relu(self.at(f"classifier.{index}")(x))
        return self.at("classifier.6")(x)


class TorchAlexNet(Tree):
    def __init__(self, widths, hidden, classes):
        super().__init__()
        sizes = zip((0, 3, 6, 8, 10), [3, *widths], widths, (11, 5, 3, 3, 3), strict=False)
        for index, n_in, n_out, kernel in sizes:
            stride, padding = (4, 2) if index == 0 else (1, kernel // 2)
            self.put(f"features.{index}", conv(n_in, n_out, kernel, stride, padding, bias=True))
        dense = [widths[-1] * 36, *hidden, classes]
        for index, n_in, n_out in zip((1, 4, 6), dense, dense[1:], strict=False):
            self.put(f"classifier.{index}", torch.nn.Linear(n_in, n_out))

    def forward(self, x):
        for index in (0, 3, 6, 8, 10):
            x = F.relu(self.at(f"features.{index}")(x))
            x = F.max_pool2d(x, 3, 2) if index in (0, 3, 10) else x
        x = x.flatten(1)
        for index in (1, 4):
            x = F.relu(self.at(f"classifier.{index}")(x))
        return self.at("classifier.6")(x)


class TorchResNet(Tree):
    def __init__(self, block, stages, widths, classes):
        super().__init__()
        self.stages, self.bottleneck = stages, block == "bottleneck"
        self.put("conv1", conv(3, widths[0], 7, 2, 3))
        self.put("bn1", torch.nn.BatchNorm2d(widths[0]))
        channels = widths[0]
        for index, (depth, width) in enumerate(zip(stages, widths, strict=True)):
            out = width * (4 if self.bottleneck else 1)
            for position in range(depth):
                name = f"layer{index + 1}.{position}"
                stride = 2 if index and not position else 1
                plan = [(channels, width, 3, stride), (width, width, 3, 1)]
                if self.bottleneck:
                    plan = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
                for number, (n_in, n_out, kernel, step) in enumerate(plan, 1):
                    self.put(f"{name}.conv{number}", conv(n_in, n_out, kernel, step, kernel // 2))
                    self.put(f"{name}.bn{number}", torch.nn.BatchNorm2d(n_out))
                if stride > 1 or channels != out:
                    self.put(f"{name}.downsample.0", conv(channels, out, 1, stride))
                    self.put(f"{name}.downsample.1", torch.nn.BatchNorm2d(out))
                channels = out
        self.put("fc", torch.nn.Linear(channels, classes))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for index, depth in enumerate(self.stages, 1):
            for position in range(depth):
                block = self.at(f"layer{index}.{position}")
                last = 3 if self.bottleneck else 2
                y = x
                for number in range(1, last + 1):
                    y = block._modules[f"bn{number}"](block._modules[f"conv{number}"](y))
                    y = F.relu(y) if number < last else y
                if "downsample" in block._modules:
                    x = self.at(f"layer{index}.{position}.downsample.1")(
                        self.at(f"layer{index}.{position}.downsample.0")(x)
                    )
                x = F.relu(x + y)
        return self.fc(x.mean((2, 3)))


class TorchDenseNet(Tree):
    def __init__(self, blocks, growth_rate, initial, classes):
        super().__init__()
        self.blocks = blocks
        self.put("features.conv0", conv(3, initial, 7, 2, 3))
        self.put("features.norm0", torch.nn.BatchNorm2d(initial))
        channels = initial
        for index, depth in enumerate(blocks, 1):
            for layer in range(1, depth + 1):
                name = f"features.denseblock{index}.denselayer{layer}"
                self.put(f"{name}.norm1", torch.nn.BatchNorm2d(channels))
                self.put(f"{name}.conv1", conv(channels, 4 * growth_rate, 1))
                self.put(f"{name}.norm2", torch.nn.BatchNorm2d(4 * growth_rate))
                self.put(f"{name}.conv2", conv(4 * growth_rate, growth_rate, 3, padding=1))
                channels += growth_rate
            if index < len(blocks):
                self.put(f"features.transition{index}.norm", torch.nn.BatchNorm2d(channels))
                self.put(f"features.transition{index}.conv", conv(channels, channels // 2, 1))
                channels //= 2
        self.put("features.norm5", torch.nn.BatchNorm2d(channels))
        self.put("classifier", torch.nn.Linear(channels, classes))

    def forward(self, x):
        f = self.features
        x = F.max_pool2d(F.relu(f.norm0(f.conv0(x))), 3, 2, 1)
        for index, depth in enumerate(self.blocks, 1):
            for number in range(1, depth + 1):
                layer = self.at(f"features.denseblock{index}.denselayer{number}")
                y = layer.conv1(F.relu(layer.norm1(x)))
                x = torch.cat([x, layer.conv2(F.relu(layer.norm2(y)))], 1)
            if index < len(self.blocks):
                transition = self.at(f"features.transition{index}")
                x = F.avg_pool2d(transition.conv(F.relu(transition.norm(x))), 2)
        return self.classifier(F.relu(f.norm5(x)).mean((2, 3)))


class TorchGoogLeNet(Tree):
    def __init__(self, stem, modules, classes):
        super().__init__()
        self.unit("conv1", 3, stem[0], 7, 2)
        self.unit("conv2", stem[0], stem[1], 1)
        self.unit("conv3", stem[1], stem[2], 3)
        channels, self.stages = stem[2], []
        for number, stage in enumerate(modules, 3):
            self.stages.append([f"inception{number}{letter}" for letter in "abcde"[: len(stage)]])
            for name, widths in zip(self.stages[-1], stage, strict=True):
                one, reduce3, three, reduce5, five, pooled = widths
                self.unit(f"{name}.branch1", channels, one, 1)
                self.unit(f"{name}.branch2.0", channels, reduce3, 1)
                self.unit(f"{name}.branch2.1", reduce3, three, 3)
                self.unit(f"{name}.branch3.0", channels, reduce5, 1)
                self.unit(f"{name}.branch3.1", reduce5, five, 3)
                self.unit(f"{name}.branch4.1", channels, pooled, 1)
                channels = one + three + five + pooled
        self.put("fc", torch.nn.Linear(channels, classes))

    def unit(self, name, n_in, n_out, kernel, stride=1):
        self.put(f"{name}.conv", conv(n_in, n_out, kernel, stride, kernel // 2))
        self.put(f"{name}.bn", torch.nn.BatchNorm2d(n_out, eps=0.001))

    def run(self, x, *names):
        for name in names:
            x = F.relu(self.at(f"{name}.bn")(self.at(f"{name}.conv")(x)))
        return x

    def forward(self, x):
        x = F.max_pool2d(self.run(x, "conv1"), 3, 2, ceil_mode=True)
        x = self.run(x, "conv2", "conv3")
        for number, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2 if number == 2 else 3, 2, ceil_mode=True)
            for name in stage:
                pooled = F.max_pool2d(x, 3, 1, 1, ceil_mode=True)
                branches = [
                    self.run(x, f"{name}.branch1"),
                    self.run(x, f"{name}.branch2.0", f"{name}.branch2.1"),
                    self.run(x, f"{name}.branch3.0", f"{name}.branch3.1"),
                    self.run(pooled, f"{name}.branch4.1"),
                ]
                x = torch.cat(branches, 1)
        return self.fc(x.mean((2, 3)))


CLASSES = 5
SIXTH = [4, 4, 8, 2, 4, 4]
CASES = {
    "vgg": (
        TorchVGG,
        "vgg16",
        {"stages": [1, 2, 1, 1, 1], "widths": [4, 6, 8, 8, 8], "hidden": [16, 12]},
        {"batch_norm": False},
        224,
    ),
    "vgg_bn": (
        TorchVGG,
        "vgg16",
        {"stages": [1, 2, 1, 1, 1], "widths": [4, 6, 8, 8, 8], "hidden": [16, 12]},
        {"batch_norm": True},
        224,
    ),
    "alexnet": (
        TorchAlexNet,
        "alexnet_single",
        {"widths": [8, 12, 12, 8, 8], "hidden": [16, 12]},
        {},
        224,
    ),
    "resnet_basic": (
        TorchResNet,
        "resnet18",
        {"block": "basic", "stages": [2, 2], "widths": [8, 12]},
        {},
        96,
    ),
    "resnet_repeated": (
        TorchResNet,
        "resnet18",
        {"block": "basic", "stages": [2, 8], "widths": [4, 6]},
        {},
        96,
    ),
    "resnet_bottleneck": (
        TorchResNet,
        "resnet50",
        {"block": "bottleneck", "stages": [2, 3], "widths": [4, 6]},
        {},
        96,
    ),
    "densenet": (
        TorchDenseNet,
        "densenet121",
        {"blocks": [2, 3], "growth_rate": 4, "initial": 8},
        {},
        96,
    ),
    "googlenet": (
        TorchGoogLeNet,
        "googlenet_pytorch",
        {"stem": [4, 4, 8], "modules": [[SIXTH], [SIXTH, SIXTH], [SIXTH]]},
        {},
        96,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_published_weights_give_the_same_logits(case, tmp_path):
    make, name, sizes, more, pixels = CASES[case]
    torch.manual_seed(0)
    theirs = make(**sizes, **more, classes=CLASSES).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.ndim == 1 and tensor.dtype == torch.float32:  # statistics too
                tensor.uniform_(0.5, 1.5)
    file = tmp_path / "weights.safetensors"
    save(theirs, file)
    config = composed(f"model={name}")["model"] | sizes | more
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, pixels, pixels, 3)))
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(logits(config, file, x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_weights_from_here_load_in_pytorch_and_give_the_same_logits(case):
    make, name, sizes, more, pixels = CASES[case]
    config = composed(f"model={name}")["model"] | sizes | more
    model = new_model(config, (pixels, pixels, 3))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda a: (
            rng.uniform(0.5, 1.5, a.shape).astype(np.float32)
            if a.ndim < 3 and a.shape[-1:] != (CLASSES,)
            else rng.normal(0, 0.1, a.shape).astype(np.float32)
        ),
        merged(*variables(model)),
    )
    theirs = make(**sizes, **more, classes=CLASSES).eval()
    state = {n: torch.from_numpy(a) for n, a in published(named(weights), config).items()}
    state = {n: a for n, a in state.items() if not n.startswith("aux")}
    theirs.load_state_dict(state, strict=True)
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, pixels, pixels, 3)))
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    found = run(model, weights, x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-4)


def new_model(config, shape):
    zeros = jax.nn.initializers.zeros
    return build(
        config, input_shape=shape, num_classes=CLASSES, kernel_init=zeros, rngs=nnx.Rngs(0)
    )


def run(model, weights, x):
    nnx.update(model, nnx.State(weights))
    model.eval()
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(x))


def save(module, file):
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, file)


def logits(config, file, x):
    """The logits of a config's model with the weights of a file, all of which must fit."""
    ours = new_model(config, x.shape[1:])
    found, weights = read_published(file, config), variables(ours)
    result = agreement(found, merged(*weights))
    assert not result.of_other_shape
    assert not result.unwanted
    assert all(name.startswith("auxiliaries") for name in result.new)
    return run(ours, merged(*(fitted(found, part) for part in weights)), x)
