"""Densely connected networks (Huang, Liu, van der Maaten & Weinberger 2017)."""

from typing import Any, Literal

import jax
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.dense_block import DenseBlock
from experiments.models.layers import BatchNorm, Conv, Dense, is_small
from experiments.ops.pooling import avg_pool, global_avg_pool, max_pool
from experiments.types import Compression, Decay, PositiveInt


class Transition(nnx.Module):
    """Fewer maps of half the size: norm, relu, 1x1, 2x2 average pooling."""

    def __init__(self, channels: int, features: int, *, kernel_init: Initializer, rngs: nnx.Rngs):
        self.norm = BatchNorm(channels)
        self.conv = Conv(
            channels, features, (1, 1), use_bias=False, kernel_init=kernel_init, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return avg_pool(self.conv(jax.nn.relu(self.norm(x))), 2)


class DenseNet(nnx.Module):
    """Dense blocks, in which every layer sees the maps of all layers before it.

    [batch, H, W, C] to logits [batch, num_classes]. Between blocks a transition keeps the share
    `compression` (θ) of the maps. `initial` are the maps of the first convolution: 7x7 at stride 2
    and 3x3 max pooling; for images below 96 pixels 3x3 alone, as in the networks for CIFAR-10.
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        blocks: list[PositiveInt],
        growth_rate: PositiveInt,
        initial: PositiveInt,
        stem: Literal["imagenet", "cifar"] | None,
        bottleneck: bool,
        compression: Compression,
        dropout: Decay,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        arguments: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        self.small = is_small(input_shape) if stem is None else stem == "cifar"
        kernel, stride, padding = ((3, 3), 1, 1) if self.small else ((7, 7), 2, 3)
        self.conv = Conv(
            input_shape[-1],
            initial,
            kernel,
            strides=stride,
            padding=padding,
            use_bias=False,
            **arguments,
        )
        self.norm = None if self.small else BatchNorm(initial)
        self.blocks: nnx.List = nnx.List()
        self.transitions: nnx.List = nnx.List()
        channels = initial
        for index, depth in enumerate(blocks):
            if index > 0:
                features = int(channels * compression)
                self.transitions.append(Transition(channels, features, **arguments))
                channels = features
            self.blocks.append(
                DenseBlock(
                    channels,
                    depth,
                    growth_rate,
                    bottleneck=bottleneck,
                    dropout=dropout,
                    **arguments,
                )
            )
            channels += depth * growth_rate
        self.last_norm = BatchNorm(channels)
        self.output = Dense(channels, num_classes, **arguments)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            x = max_pool(jax.nn.relu(self.norm(x)), 3, strides=2, padding=1)
        for index, block in enumerate(self.blocks):
            if index > 0:
                x = self.transitions[index - 1](x)
            x = block(x, rngs=rngs)
        return self.output(global_avg_pool(jax.nn.relu(self.last_norm(x))))
