"""AlexNet (Krizhevsky, Sutskever & Hinton 2012) and its single-tower form (Krizhevsky 2014)."""

import itertools
from typing import Any

import jax
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.errors import UserError
from experiments.models.layers import Conv, Dense, Dropout, flatten, is_small
from experiments.ops.normalisation import local_response_norm
from experiments.ops.pooling import max_pool
from experiments.types import Decay, PositiveInt


class AlexNet(nnx.Module):
    """Five convolutions (11x11, 5x5, 3x3, 3x3, 3x3), overlapping 3x3 max pooling, dense layers.

    [batch, H, W, C] to logits [batch, num_classes]. `groups=2` splits the second, fourth and fifth
    convolution as over the paper's two GPUs: 60,965,224 parameters at 224 pixels and 1000 classes,
    62,378,344 without. Two pixels of padding give the paper's 55x55 maps from its 224x224 images.
    Images below 96 pixels get 5x5 at stride 1 for the first layer, as in the author's networks for
    CIFAR-10, and `small_hidden` units in each dense layer.
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        widths: list[PositiveInt],
        groups: PositiveInt,
        response_norm: bool,
        hidden: list[PositiveInt],
        small_hidden: list[PositiveInt],
        dropout: Decay,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        height, width, channels = input_shape
        arguments: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        small = is_small(input_shape)
        kernels, grouped = [5 if small else 11, 5, 3, 3, 3], [1, groups, 1, groups, groups]
        self.convs: nnx.List = nnx.List()
        for features, kernel, split in zip(widths, kernels, grouped, strict=True):
            first = not self.convs
            stride = 4 if first and not small else 1
            padding = 2 if first else kernel // 2
            conv = Conv(
                channels,
                features,
                (kernel, kernel),
                strides=stride,
                padding=padding,
                groups=split,
                **arguments,
            )
            self.convs.append(conv)
            channels = features
            if first:
                height, width = ((n + 4 - kernel) // stride + 1 for n in (height, width))
        for _ in range(3):
            height, width = ((n - 3) // 2 + 1 for n in (height, width))
        sizes = [height * width * channels, *(small_hidden if small else hidden)]
        self.hidden = nnx.List(
            Dense(n_in, n_out, **arguments) for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = Dense(sizes[-1], num_classes, **arguments)
        self.dropout = Dropout(dropout)
        self.response_norm = response_norm

    @staticmethod
    def check_config(arguments: dict[str, Any], path: str) -> None:
        """Raises `UserError` unless there are five widths, which the groups divide."""
        widths, groups = arguments["widths"], arguments["groups"]
        if len(widths) != 5:
            raise UserError(f"{path}.widths={widths}: must be five numbers, one a convolution")
        if any(width % groups for width in widths):
            raise UserError(f"{path}.groups={groups} does not divide all of {path}.widths={widths}")

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for index, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(x))
            if index in (0, 1) and self.response_norm:
                x = local_response_norm(x)
            if index in (0, 1, 4):
                x = max_pool(x, 3, strides=2)
        x = flatten(x)
        for dense in self.hidden:
            x = self.dropout(jax.nn.relu(dense(x)), rngs=rngs)
        return self.output(x)
