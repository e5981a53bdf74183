"""Network in Network (Lin, Chen & Yan 2014)."""

from typing import Any

import jax
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.layers import Conv, Dropout, is_small
from experiments.ops.pooling import global_avg_pool, max_pool
from experiments.types import Decay, PositiveInt


class NIN(nnx.Module):
    """Mlpconv blocks, a convolution and 1x1 convolutions after it, and no dense layer.

    [batch, H, W, C] to logits [batch, num_classes]. The last 1x1 convolution gives a map a class,
    whose mean is the class's score (section 3.2). `widths` are the channels of each convolution,
    block by block. Between blocks stand 3x3 max pooling at
    stride 2 and dropout. Images below 96 pixels get the paper's network for CIFAR-10 (966,986
    parameters), larger ones the authors' four blocks for ImageNet (7,595,176).
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        widths: list[list[PositiveInt]],
        small_widths: list[list[PositiveInt]],
        dropout: Decay,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        arguments: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        small, channels = is_small(input_shape), input_shape[-1]
        # (kernel, stride, padding) of the first convolution of each block
        first = [(5, 1, 2), (5, 1, 2)] if small else [(11, 4, 2), (5, 1, 2)]
        self.blocks: nnx.List = nnx.List()
        for index, block in enumerate(small_widths if small else widths):
            kernel, stride, padding = first[index] if index < len(first) else (3, 1, 1)
            convs: nnx.List = nnx.List()
            for features in block:
                conv = Conv(
                    channels,
                    features,
                    (kernel, kernel),
                    strides=stride,
                    padding=padding,
                    **arguments,
                )
                convs.append(conv)
                channels, (kernel, stride, padding) = features, (1, 1, 0)
            self.blocks.append(convs)
        self.output = Conv(channels, num_classes, (1, 1), **arguments)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for index, block in enumerate(self.blocks):
            if index > 0:
                x = self.dropout(max_pool(x, 3, strides=2, padding=((0, 1), (0, 1))), rngs=rngs)
            for conv in block:
                x = jax.nn.relu(conv(x))
        return global_avg_pool(self.output(x))
