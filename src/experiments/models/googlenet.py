"""Network in Network and GoogLeNet: 1x1 convolutions, and global pooling for dense layers."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Init,
    flatten,
    is_small,
    local_response_norm,
)
from experiments.ops.pooling import avg_pool, global_avg_pool, max_pool
from experiments.ops.remat import as_block
from experiments.types import Decay, Initializer, NonNegative, PositiveInt, is_off

CEIL = ((0, 1), (0, 1))  # padding with which a 3x3 pooling at stride 2 gives ceil(size / 2)
HALFWAY = {(1, 0), (1, 3)}  # stage and position of the modules 4a and 4d, for the auxiliaries


class NIN(nnx.Module):
    """Network in Network (Lin, Chen & Yan 2014): blocks of a convolution and 1x1 convolutions.

    [batch, H, W, C] to logits [batch, num_classes]. There is no dense layer: the last 1x1
    convolution gives one map per class; its mean is the class's score (section 3.2). `widths` are
    the channels of each convolution, block by block. Between blocks are 3x3 max pooling at stride 2
    and dropout. Images below 96 pixels get the paper's network for CIFAR-10 (966,986 parameters),
    larger ones the authors' four blocks for ImageNet (7,595,176).
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
        **init: Unpack[Init],
    ):
        small, channels = is_small(input_shape), input_shape[-1]
        # (kernel, stride, padding) of the first convolution of each block
        first = [(5, 1, 2), (5, 1, 2)] if small else [(11, 4, 2), (5, 1, 2)]
        self.blocks: nnx.List = nnx.List()
        for index, block in enumerate(small_widths if small else widths):
            kernel, stride, padding = first[index] if index < len(first) else (3, 1, 1)
            convs: nnx.List = nnx.List()
            for features in block:
                options: dict[str, Any] = {"strides": stride, "padding": padding, **init}
                convs.append(Conv(channels, features, (kernel, kernel), **options))
                channels, (kernel, stride, padding) = features, (1, 1, 0)
            self.blocks.append(convs)
        self.output = Conv(channels, num_classes, (1, 1), **init)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for index, block in enumerate(self.blocks):
            if index > 0:
                x = self.dropout(max_pool(x, 3, strides=2, padding=CEIL), rngs=rngs)
            x = as_block(_rectified, block, x)
        return global_avg_pool(self.output(x))


def _rectified(convs: nnx.List, x: jax.Array) -> jax.Array:
    """Return the output of convolutions, each followed by a rectifier."""
    for conv in convs:
        x = jax.nn.relu(conv(x))
    return x


class ConvUnit(nnx.Module):
    """A convolution, batch normalisation if `batch_norm`, and a rectifier.

    `parts` are what a paper calls its features, one title and number after another.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        kernel: int,
        *,
        stride: int = 1,
        batch_norm: bool,
        parts: Sequence[tuple[str, int]] = (),
        **init: Unpack[Init],
    ):
        self.parts = tuple(parts)
        options: dict[str, Any] = {"padding": kernel // 2, "use_bias": not batch_norm, **init}
        self.conv = Conv(channels, features, (kernel, kernel), strides=stride, **options)
        self.norm = BatchNorm(features, epsilon=1e-3) if batch_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return jax.nn.relu(x if self.norm is None else self.norm(x))


class Inception(nnx.Module):
    """Branches with several sizes of convolution on the same input (figure 2b).

    [batch, H, W, channels] to [batch, H, W, Σ features of the branches]: 1x1; 1x1 and 3x3; 1x1 and
    5x5 (of size `large`); 3x3 max pooling and 1x1. The three 1x1 that read the input are one
    convolution, `entry`, with their features in this order: one wide matrix product is faster than
    three narrow ones, and there is less to compile. `title` and the parts are named as in table 1.
    """

    def __init__(
        self,
        channels: int,
        widths: list[int],
        *,
        large: int,
        title: str,
        kernel_init: Initializer,
        **options: Any,
    ):
        self.title = title
        one, reduce3, three, reduce5, five, pooled = widths
        entries = (one, reduce3, reduce5)
        parts = list(zip(("#1x1", "#3x3 reduce", "#5x5 reduce"), entries, strict=True))

        def each(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            kernels = [kernel_init(key, (*shape[:-1], width), dtype) for width in entries]
            return jnp.concatenate(kernels, axis=-1)

        self.entry = ConvUnit(channels, sum(entries), 1, parts=parts, kernel_init=each, **options)
        options["kernel_init"] = kernel_init
        self.branch3 = ConvUnit(reduce3, three, 3, parts=[("#3x3", three)], **options)
        self.branch5 = ConvUnit(reduce5, five, large, parts=[("#5x5", five)], **options)
        self.pooled = ConvUnit(channels, pooled, 1, parts=[("pool proj", pooled)], **options)
        self.ends = (one, one + reduce3)

    def __call__(self, x: jax.Array) -> jax.Array:
        one, reduced3, reduced5 = jnp.split(self.entry(x), self.ends, axis=-1)
        pooled = self.pooled(max_pool(x, 3, strides=1, padding=1))
        branches = [one, self.branch3(reduced3), self.branch5(reduced5), pooled]
        return jnp.concatenate(branches, axis=-1)


class Auxiliary(nnx.Module):
    """An auxiliary classifier: 5x5 average pooling at stride 3, 1x1, dense, dropout, dense."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        num_classes: int,
        hidden: int,
        dropout: Any,
        batch_norm: bool,
        **init: Unpack[Init],
    ):
        height, width, channels = shape
        self.window = min(5, height, width)  # maps of 4 pixels are averaged as a whole
        size = ((height - self.window) // 3 + 1) * ((width - self.window) // 3 + 1)
        self.conv = ConvUnit(channels, hidden // 8, 1, batch_norm=batch_norm, **init)
        self.hidden = Dense(size * (hidden // 8), hidden, **init)
        self.output = Dense(hidden, num_classes, **init)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.conv(avg_pool(x, self.window, strides=3))
        x = self.dropout(jax.nn.relu(self.hidden(flatten(x))), rngs=rngs)
        return self.output(x)


class GoogLeNet(nnx.Module):
    """GoogLeNet: three convolutions, nine inception modules, one dense layer (Szegedy et al. 2015).

    [batch, H, W, C] to logits [batch, num_classes]; in training, unless `auxiliary_weight` is 0, to
    a tuple of them and the logits of two auxiliary classifiers on modules 4a and 4d; their losses
    count `auxiliary_weight` times (section 5). Without those it has 6,998,552 parameters for 1000
    classes. `stem` and `modules` are the channels of table 1. `batch_norm` replaces biases and
    response normalisation. Images below 96 pixels get a first convolution of 3x3 at stride 1 and no
    pooling after it.
    """

    minimum_size = 32

    def __init__(
        self,
        *,
        stem: list[PositiveInt],
        modules: list[list[list[PositiveInt]]],
        large_kernel: Literal[3, 5],
        last_pool: Literal[2, 3],
        batch_norm: bool,
        dropout: Decay,
        auxiliary_weight: NonNegative,
        auxiliary_hidden: PositiveInt,
        auxiliary_dropout: Decay,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        units: dict[str, Any] = {"batch_norm": batch_norm, **init}
        small = is_small(input_shape)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = ConvUnit(input_shape[-1], stem[0], kernel, stride=stride, **units)
        self.reduce2 = ConvUnit(stem[0], stem[1], 1, parts=[("#3x3 reduce", stem[1])], **units)
        self.conv2 = ConvUnit(stem[1], stem[2], 3, **units)
        self.stages: nnx.List = nnx.List()
        options: dict[str, Any]
        channels, shapes = stem[2], []
        halvings = 2 if small else 4  # before the second stage
        size = [-(-n // 2**halvings) for n in input_shape[:2]]
        for number, stage in enumerate(modules):
            blocks: nnx.List = nnx.List()
            for position, widths in enumerate(stage):
                title = f"inception ({number + 3}{chr(ord('a') + position)})"
                options = {"large": large_kernel, "title": title, **units}
                blocks.append(Inception(channels, widths, **options))
                channels = widths[0] + widths[2] + widths[4] + widths[5]
                if (number, position) in HALFWAY:
                    shapes.append((*size, channels))
            self.stages.append(blocks)
        self.output = Dense(channels, num_classes, **init)
        options = {"num_classes": num_classes, "hidden": auxiliary_hidden}
        options |= {"dropout": auxiliary_dropout, **units}
        self.auxiliaries = nnx.List(
            Auxiliary(s, **options) for s in ([] if is_off(auxiliary_weight) else shapes)
        )
        self.auxiliary_weight, self.last_pool = auxiliary_weight, last_pool
        self.dropout = Dropout(dropout)
        self.small = small
        self.response_norm = not batch_norm
        self.deterministic = False  # `train()` and `eval()` set it

    @staticmethod
    def check_config(arguments: dict[str, Any], path: str) -> None:
        """Raise `UserError` unless there are three widths in the stem and six in each module."""
        if len(arguments["stem"]) != 3:
            raise UserError(f"{path}.stem={arguments['stem']}: must be three numbers")
        for number, stage in enumerate(arguments["modules"]):
            for position, widths in enumerate(stage):
                if len(widths) != 6:
                    where = f"{path}.modules.{number}.{position}"
                    raise UserError(f"{where}={widths}: must be six numbers, as in table 1")

    def __call__(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array | tuple[jax.Array, ...]:
        x = self.conv1(x)
        if not self.small:
            x = max_pool(x, 3, strides=2, padding=CEIL)
        if self.response_norm:
            x = local_response_norm(x)
        x = self.conv2(self.reduce2(x))
        if self.response_norm:
            x = local_response_norm(x)
        halfway = []
        for number, stage in enumerate(self.stages):
            last = number == len(self.stages) - 1
            window, padding = (2, "VALID") if last and self.last_pool == 2 else (3, CEIL)
            x = max_pool(x, window, strides=2, padding=padding)
            for position, block in enumerate(stage):
                x = as_block(block, x)
                if (number, position) in HALFWAY:
                    halfway.append(x)
        logits = self.output(self.dropout(global_avg_pool(x), rngs=rngs))
        if self.deterministic or not self.auxiliaries:
            return logits
        outputs = [f(y, rngs=rngs) for f, y in zip(self.auxiliaries, halfway, strict=True)]
        return (logits, *outputs)
