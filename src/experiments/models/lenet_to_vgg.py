"""LeNet-5, AlexNet, ZFNet and VGG: convolutions and pooling, then dense layers."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    Conv,
    Dense,
    Init,
    WeightedPool,
    drawn,
    flatten,
    is_small,
    local_response_norm,
)
from experiments.models.mlp import MLP
from experiments.ops import backend, convolution
from experiments.ops.pooling import avg_pool, max_pool
from experiments.ops.remat import as_block
from experiments.types import Activation, Decay, PositiveInt

# by number of maps, the maps of S2 that each map of C3 reads (LeCun et al. 1998, table I)
TABLE_I = {
    3: ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)),
    4: (
        *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2)),
        *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    ),
    6: ((0, 1, 2, 3, 4, 5),),
}


class PartialConv(nnx.Module):
    """C3 of LeNet-5: 16 maps of 5x5, of which each reads some of 6 maps, as in `TABLE_I`.

    [batch, H, W, 6] to [batch, H − 4, W − 4, 16], with 1,516 parameters. Maps that read equally
    many have their weights in one array.
    """

    def __init__(self, **init: Unpack[Init]):
        for number, maps in TABLE_I.items():
            setattr(self, f"kernel{number}", nnx.Param(drawn((5, 5, number, len(maps)), **init)))
        self.bias = nnx.Param(np.zeros(16, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernels = {number: getattr(self, f"kernel{number}")[...] for number in TABLE_I}
        if jax.default_backend() == "cpu" and not backend.is_xla_only():
            # convolutions in groups are slow there: one of all pairs, with 0 for those that are not
            pairs = {n: np.eye(6)[np.array(maps)] for n, maps in TABLE_I.items()}
            full = [jnp.einsum("hwnf,fnc->hwcf", kernels[n], pairs[n]) for n in TABLE_I]
            whole = jnp.concatenate(full, axis=-1).astype(x.dtype)
            return convolution.conv(x, whole, padding="VALID") + self.bias[...]
        parts = [
            convolution.conv(x[..., np.ravel(maps)], kernels[n], padding="VALID", groups=len(maps))
            for n, maps in TABLE_I.items()
        ]
        return jnp.concatenate(parts, axis=-1) + self.bias[...]


class LeNet5(nnx.Module):
    """LeNet-5: C1 6@5x5, S2, C3 16@5x5, S4, C5 120@5x5, F6 84, output (LeCun et al. 1998).

    [batch, H, W, C] to logits [batch, num_classes]. At 32x32 the maps are 28, 14, 10, 5 and 1
    pixels wide; 28x28 images are padded to 32x32 as in the paper. With one channel, ten classes,
    all 96 pairs of maps in `c3` and no weights in S2 and S4 it has 61,706 parameters. With
    `c3="table"` it has 60,806, and with `pooling="weighted"` 44 more: the paper's 60,000 and an
    output layer of 850, where the paper has fixed centres.
    """

    minimum_size = 28

    def __init__(
        self,
        *,
        activation: Activation,
        pooling: Literal["average", "max", "weighted"],
        c3: Literal["full", "table"] = "full",
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        height, width, channels = input_shape
        pad = 2 if min(height, width) < 32 else 0
        self.conv1 = Conv(channels, 6, (5, 5), padding=pad, **init)
        full = c3 == "full"
        self.conv2 = Conv(6, 16, (5, 5), padding="VALID", **init) if full else PartialConv(**init)
        rows, columns = (((n + 2 * pad - 4) // 2 - 4) // 2 for n in (height, width))
        # a convolution as large as its input is a dense layer
        self.conv3 = Dense(rows * columns * 16, 120, **init)
        self.dense = Dense(120, 84, **init)
        self.output = Dense(84, num_classes, **init)
        self.activation = activation
        self.pool1, self.pool2 = (_halved(pooling, maps) for maps in (6, 16))

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        x = self.pool1(activation(self.conv1(x)))
        x = self.pool2(activation(self.conv2(x)))
        x = activation(self.conv3(flatten(x)))
        return self.output(activation(self.dense(x)))


def _halved(pooling: str, maps: int) -> Callable[[jax.Array], jax.Array]:
    """Return 2x2 pooling of this kind, for so many maps."""
    pool = functools.partial(max_pool if pooling == "max" else avg_pool, window=(2, 2))
    return WeightedPool(maps, pool) if pooling == "weighted" else pool


class AlexNet(MLP):
    """AlexNet (Krizhevsky, Sutskever & Hinton 2012) and its single tower (Krizhevsky 2014).

    [batch, H, W, C] to logits [batch, num_classes]: five convolutions, with overlapping 3x3 max
    pooling after the first, second and last, then an MLP. `groups=2` splits the second, fourth and
    fifth convolution as over the paper's two GPUs: 60,965,224 parameters at 224 pixels and 1000
    classes, 62,378,344 without. Two pixels of padding give the paper's 55x55 maps from its 224x224
    images. Images below 96 pixels get 5x5 at stride 1 for the first layer, as in the author's
    networks for CIFAR-10, and `small_hidden` units in each dense layer.
    """

    minimum_size = 32
    pool_padding: ClassVar = {0: 0, 1: 0, 4: 0}  # by index of the convolution before the pooling
    pools_first = False  # local response normalisation comes before pooling

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
        **init: Unpack[Init],
    ):
        small = is_small(input_shape)
        *sides, channels = input_shape
        self.convs: nnx.List = nnx.List()
        for index, (features, window) in enumerate(zip(widths, self.windows(small), strict=True)):
            kernel, stride, padding = window
            shared: dict[str, Any] = {"groups": groups if index in (1, 3, 4) else 1, **init}
            size = (kernel, kernel)
            conv = Conv(channels, features, size, strides=stride, padding=padding, **shared)
            self.convs.append(conv)
            channels = features
            sides = [(n + 2 * padding - kernel) // stride + 1 for n in sides]
            if index in self.pool_padding:
                sides = [(n + 2 * self.pool_padding[index] - 3) // 2 + 1 for n in sides]
        super().__init__(
            hidden=small_hidden if small else hidden,
            activation="relu",
            dropout=dropout,
            input_shape=(*sides, channels),
            num_classes=num_classes,
            **init,
        )
        self.response_norm = response_norm

    @staticmethod
    def windows(small: bool) -> list[tuple[int, int, int]]:
        """Return (kernel, stride, padding) of each convolution."""
        return [(5, 1, 2) if small else (11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]

    @staticmethod
    def check_config(arguments: dict[str, Any], path: str) -> None:
        """Raise `UserError` unless there are five widths, which the groups divide."""
        widths, groups = arguments["widths"], arguments["groups"]
        if len(widths) != 5:
            raise UserError(f"{path}.widths={widths}: must be five numbers, one per convolution")
        if any(width % groups for width in widths):
            raise UserError(f"{path}.groups={groups} does not divide all of {path}.widths={widths}")

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for index, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(x))
            normalised = self.response_norm and index in (0, 1)
            if normalised and not self.pools_first:
                x = local_response_norm(x)
            if index in self.pool_padding:
                x = max_pool(x, 3, strides=2, padding=self.pool_padding[index])
            if normalised and self.pools_first:
                x = local_response_norm(x)
        return super().__call__(x, rngs=rngs)


class ZFNet(AlexNet):
    """ZFNet: AlexNet with 7x7 and 5x5 first layers, both at stride 2 (Zeiler & Fergus 2014).

    From 224x224 the maps are 110, 55, 26, 13 and, after the last pooling, 6 pixels wide (figure 3):
    62,357,608 parameters for 1000 classes. Local response normalisation follows the first two
    poolings. Images below 96 pixels get the same kernels at stride 1.
    """

    pool_padding: ClassVar = {0: 1, 1: 1, 4: 0}
    pools_first = True

    @staticmethod
    def windows(small: bool) -> list[tuple[int, int, int]]:
        """Return (kernel, stride, padding) of each convolution."""
        first = [(7, 1, 3), (5, 1, 2)] if small else [(7, 2, 1), (5, 2, 0)]
        return [*first, (3, 1, 1), (3, 1, 1), (3, 1, 1)]


class VGG(MLP):
    """VGG: stages of 3x3 convolutions, each ended by 2x2 max pooling (Simonyan & Zisserman 2015).

    [batch, H, W, C] to logits [batch, num_classes]. `stages` counts the convolutions of each
    stage, `widths` their channels; [2, 2, 3, 3, 3] is configuration D, VGG-16, and with a
    `third_kernel` of 1, that of the third convolution of a stage, configuration C. Images of 224
    pixels get the published dense layers (4096-4096, 138,357,544 parameters for 1000 classes).
    Below that the last maps are 1 to 6 pixels wide and the dense layers have `small_hidden` units
    instead ([] is a single output layer).
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
        third_kernel: Literal[1, 3] = 3,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        height, width, channels = input_shape
        self.stages: nnx.List = nnx.List()
        for depth, features in zip(stages, widths, strict=True):
            stage: nnx.List = nnx.List()
            for position in range(depth):
                side = third_kernel if position == 2 else 3
                conv = Conv(channels, features, (side, side), padding=side // 2, **init)
                stage.append(nnx.List([conv, BatchNorm(features)] if batch_norm else [conv]))
                channels = features
            self.stages.append(stage)
        shrink = 2 ** len(stages)
        super().__init__(
            hidden=hidden if min(height, width) >= 224 else small_hidden,
            activation=activation,
            dropout=dropout,
            input_shape=(height // shrink, width // shrink, channels),
            num_classes=num_classes,
            **init,
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        stage_of = functools.partial(_stage, activation=ACTIVATIONS[self.activation])
        for stage in self.stages:
            x = as_block(stage_of, stage, x)
        return super().__call__(x, rngs=rngs)


def _stage(units: nnx.List, x: jax.Array, activation: Callable) -> jax.Array:
    """Return the output of the convolutions of a stage, halved."""
    for unit in units:
        for layer in unit:
            x = layer(x)
        x = activation(x)
    return max_pool(x, 2)
