"""VGG (Simonyan & Zisserman 2015)."""

import itertools
from typing import Any

import jax
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.layers import ACTIVATIONS, BatchNorm, Conv, Dense, Dropout, flatten
from experiments.ops.pooling import max_pool
from experiments.types import Activation, Decay, PositiveInt


class VGG(nnx.Module):
    """Stages of 3x3 convolutions, each stage ended by 2x2 max pooling, and a dense classifier.

    [batch, H, W, C] to logits [batch, num_classes]. `stages` counts the convolutions of each
    stage, `widths` their channels; [2, 2, 3, 3, 3] is configuration D, VGG-16. Images of 224
    pixels get the published classifier (4096-4096, 138,357,544 parameters for 1000 classes).
    Below that the features are 1 to 6 pixels wide and a head fit to them takes its place: the
    same layers with `small_hidden` units each ([] is a single output layer).
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        stages: list[PositiveInt],
        widths: list[PositiveInt],
        hidden: list[PositiveInt],
        small_hidden: list[PositiveInt],
        batch_norm: bool,
        dropout: Decay,
        activation: Activation,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        height, width, channels = input_shape
        arguments: dict[str, Any] = {"kernel_init": kernel_init, "rngs": rngs}
        self.stages: nnx.List = nnx.List()
        for depth, features in zip(stages, widths, strict=True):
            stage: nnx.List = nnx.List()
            for _ in range(depth):
                conv = Conv(channels, features, (3, 3), padding=1, **arguments)
                stage.append(nnx.List([conv, BatchNorm(features)] if batch_norm else [conv]))
                channels = features
            self.stages.append(stage)
        shrink = 2 ** len(stages)
        large = min(height, width) >= 224
        sizes = [(height // shrink) * (width // shrink) * channels]
        sizes += hidden if large else small_hidden
        self.hidden = nnx.List(
            Dense(n_in, n_out, **arguments) for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = Dense(sizes[-1], num_classes, **arguments)
        self.dropout = Dropout(dropout)
        self.activation = activation

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        for stage in self.stages:
            for unit in stage:
                for layer in unit:
                    x = layer(x)
                x = activation(x)
            x = max_pool(x, 2)
        x = flatten(x)
        for dense in self.hidden:
            x = self.dropout(activation(dense(x)), rngs=rngs)
        return self.output(x)
