"""ZFNet (Zeiler & Fergus 2014)."""

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


class ZFNet(nnx.Module):
    """AlexNet with a 7x7 first layer at stride 2 and a 5x5 second one at stride 2.

    [batch, H, W, C] to logits [batch, num_classes]. From 224x224 the maps are 110, 55, 26, 13 and,
    after the last pooling, 6 pixels wide (figure 3): 62,357,608 parameters for 1000 classes.
    Contrast is normalised across maps after the first two poolings. Images below 96 pixels keep
    the kernels at stride 1 and get `small_hidden` units in each dense layer.
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        widths: list[PositiveInt],
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
        stride = 1 if small else 2
        # (kernel, stride, padding) of each convolution
        layers = [(7, stride, 3 if small else 1), (5, stride, 2 if small else 0)] + [(3, 1, 1)] * 3
        self.convs: nnx.List = nnx.List()
        for index, (features, (kernel, step, padding)) in enumerate(
            zip(widths, layers, strict=True)
        ):
            conv = Conv(
                channels, features, (kernel, kernel), strides=step, padding=padding, **arguments
            )
            self.convs.append(conv)
            channels = features
            height, width = ((n + 2 * padding - kernel) // step + 1 for n in (height, width))
            if index in POOLING:
                border = POOLING[index]
                height, width = ((n + 2 * border - 3) // 2 + 1 for n in (height, width))
        sizes = [height * width * channels, *(small_hidden if small else hidden)]
        self.hidden = nnx.List(
            Dense(n_in, n_out, **arguments) for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = Dense(sizes[-1], num_classes, **arguments)
        self.dropout = Dropout(dropout)

    @staticmethod
    def check_config(arguments: dict[str, Any], path: str) -> None:
        """Raises `UserError` unless there are five widths."""
        if len(arguments["widths"]) != 5:
            widths = arguments["widths"]
            raise UserError(f"{path}.widths={widths}: must be five numbers, one a convolution")

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for index, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(x))
            if index in POOLING:
                x = max_pool(x, 3, strides=2, padding=POOLING[index])
            if index in (0, 1):
                x = local_response_norm(x)
        x = flatten(x)
        for dense in self.hidden:
            x = self.dropout(jax.nn.relu(dense(x)), rngs=rngs)
        return self.output(x)


POOLING = {0: 1, 1: 1, 4: 0}
"""After which convolution 3x3 max pooling at stride 2 follows, with how much padding."""
