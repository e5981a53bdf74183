"""The classifiers of `benchmarks/steps.py` in PyTorch: images [N, C, H, W] to logits [N, 10]."""

from collections.abc import Callable

import torch
from torch import nn


def lenet5() -> nn.Module:
    """`conf/model/lenet5.yaml` on 28x28."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


def vgg16() -> nn.Module:
    """`conf/model/vgg16.yaml` on 32x32."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        if self.added:
            strided = x[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(strided, (0, 0, 0, 0, 0, self.added))
        return nn.functional.relu(y + x, inplace=True)


def resnet20() -> nn.Module:
    """`conf/model/resnet20.yaml`."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
    ]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(channels, width, stride=1 if width == channels else 2))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class LSTM(nn.Module):
    """`conf/model/lstm.yaml`, reading an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.LSTM(28, 128, batch_first=True)
        self.output = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.stack(x[:, 0])
        return self.output(hidden[-1])


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lenet5,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "lstm": LSTM,
}
