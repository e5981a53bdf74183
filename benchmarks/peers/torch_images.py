"""The classifiers of `benchmarks/gpu.py` in PyTorch: images [N, 3, side, side] to [N, classes].

As ours they have a 3x3 stem at stride 1 for images below 96 pixels.
"""

import functools
import itertools
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.peers import torch_classifiers

SMALL = 96
AUXILIARY_WEIGHT = 0.3  # of the losses of GoogLeNet's two classifiers halfway


def unit(channels: int, width: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias, and batch normalisation."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(width)]


def stem(side: int, width: int) -> list[nn.Module]:
    """The first layers of a ResNet."""
    if side < SMALL:
        return [*unit(3, width, 3), nn.ReLU(inplace=True)]
    return [*unit(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]


def head(channels: int, classes: int) -> list[nn.Module]:
    """The mean over all places and a dense layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


class Residual(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, beside a shortcut: 1x1 where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out = 4 * width if bottleneck else width
        kernels, strides = ((1, 3, 1), (1, stride, 1)) if bottleneck else ((3, 3), (stride, 1))
        widths = [channels, *[width] * (len(kernels) - 1), out]
        layers: list[nn.Module] = []
        for sizes, kernel, step in zip(itertools.pairwise(widths), kernels, strides, strict=True):
            layers += [*unit(*sizes, kernel, step), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*unit(channels, out, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x), inplace=True)


def resnet(side: int, classes: int, *, stages: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """`conf/model/resnet18.yaml`, `resnet50.yaml`."""
    layers, channels = stem(side, 64), 64
    for index, (depth, width) in enumerate(zip(stages, (64, 128, 256, 512), strict=True)):
        for block in range(depth):
            stride = 2 if index and not block else 1
            layers.append(Residual(channels, width, stride, bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, *head(channels, classes))


def vgg16(side: int, classes: int) -> nn.Module:
    """`conf/model/vgg16.yaml`, with hidden layers from 224 pixels on."""
    features = torch_classifiers.vgg16()[:-1]  # all but the output layer
    channels = 512 * (side // 32) ** 2
    hidden: list[nn.Module] = []
    for width in (4096, 4096) if side >= 224 else ():
        hidden += [nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        channels = width
    return nn.Sequential(*features, *hidden, nn.Linear(channels, classes))


def normed(channels: int) -> list[nn.Module]:
    """Batch normalisation and rectifier, in front of a convolution."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class Grown(nn.Module):
    """The maps so far and `growth` new ones, by a 1x1 convolution and one of 3x3."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        inner = 4 * growth
        self.body = nn.Sequential(
            *normed(channels),
            nn.Conv2d(channels, inner, 1, bias=False),
            *normed(inner),
            nn.Conv2d(inner, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(side: int, classes: int) -> nn.Module:
    """`conf/model/densenet121.yaml`."""
    growth, channels = 32, 64
    layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False)] if side < SMALL else stem(side, 64)
    for index, depth in enumerate((6, 12, 24, 16)):
        if index:
            conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers += [*normed(channels), conv, nn.AvgPool2d(2)]
            channels //= 2
        layers += [Grown(channels + layer * growth, growth) for layer in range(depth)]
        channels += depth * growth
    return nn.Sequential(*layers, *normed(channels), *head(channels, classes))


def rectified(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with bias, and a rectifier."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four branches side by side; as in ours the three 1x1 that read the input are one."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths
        self.entries = [one, reduce3, reduce5]
        self.entry = rectified(channels, sum(self.entries), 1)
        self.branch3 = rectified(reduce3, three, 3)
        self.branch5 = rectified(reduce5, five, 5)
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), rectified(channels, pooled, 1))
        self.features = one + three + five + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, reduced3, reduced5 = self.entry(x).split(self.entries, 1)
        return torch.cat([one, self.branch3(reduced3), self.branch5(reduced5), self.pooled(x)], 1)


def auxiliary(channels: int, side: int, classes: int) -> nn.Module:
    """A classifier halfway, on maps [N, channels, side, side]."""
    places = ((side - 5) // 3 + 1) ** 2
    return nn.Sequential(
        nn.AvgPool2d(5, 3),
        rectified(channels, 128, 1),
        nn.Flatten(),
        nn.Linear(128 * places, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(0.7),
        nn.Linear(1024, classes),
    )


MODULES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class GoogLeNet(nn.Module):
    """`conf/model/googlenet.yaml`, to logits and those of the two classifiers halfway."""

    def __init__(self, side: int, classes: int):
        super().__init__()
        small = side < SMALL
        first = [rectified(3, 64, 3)] if small else [rectified(3, 64, 7, 2), pool()]
        second = [rectified(64, 64, 1), rectified(64, 192, 3)]
        parts, channels = [[*first, response_norm(), *second, response_norm()]], 192
        inside = side // (4 if small else 16)
        halfway = []
        for number, stage in enumerate(MODULES):
            parts[-1].append(pool())
            for position, widths in enumerate(stage):
                block = Inception(channels, widths)
                parts[-1].append(block)
                channels = block.features
                if (number, position) in ((1, 0), (1, 3)):
                    halfway.append(auxiliary(channels, inside, classes))
                    parts.append([])
        parts[-1] += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4)]
        self.first, self.middle, self.last = (nn.Sequential(*part) for part in parts)
        self.output = nn.Linear(channels, classes)
        self.halfway = nn.ModuleList(halfway)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        early = self.first(x)
        late = self.middle(early)
        return self.output(self.last(late)), self.halfway[0](early), self.halfway[1](late)


def pool() -> nn.Module:
    """3x3 at stride 2, to half the size rounded up."""
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def response_norm() -> nn.Module:
    """Local response normalisation with the constants of ours: PyTorch divides alpha by size."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


IMAGES: dict[str, Callable[[int, int], nn.Module]] = {
    "gpu_resnet50_224": functools.partial(resnet, stages=(3, 4, 6, 3), bottleneck=True),
    "gpu_resnet18_32": functools.partial(resnet, stages=(2, 2, 2, 2), bottleneck=False),
    "gpu_vgg16_224": vgg16,
    "gpu_vgg16_32": vgg16,
    "gpu_densenet121_224": densenet121,
    "gpu_googlenet_224": GoogLeNet,
}
