"""Densely connected networks (Huang, Liu, van der Maaten & Weinberger 2017)."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.dense_loop import Layers, Tree, run, segments
from experiments.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Init,
    drawn,
    is_small,
)
from experiments.ops.pooling import avg_pool, global_avg_pool, max_pool
from experiments.ops.remat import as_block
from experiments.types import Compression, Decay, PositiveInt


class DenseLayer(nnx.Module):
    """Norm, relu and a 3x3 convolution to `growth_rate` new maps, with the weights of all layers.

    A bottleneck has norm, relu and a 1x1 convolution to four times as many maps before that
    (section 3, "Bottleneck layers"). The layers of a block read `widths` channels. The variables of
    their first normalisation and convolution are joined along the input channels, [Σ widths] and
    [k, k, Σ widths, features]; those of the second are stacked, [depth, ...].
    """

    def __init__(
        self, widths: Sequence[int], growth_rate: int, *, bottleneck: bool, **init: Unpack[Init]
    ):
        def joined(_key: jax.Array, shape: tuple[int, ...], _dtype: Any) -> jax.Array:
            *window, _, features = shape
            shapes = [(*window, width, features) for width in widths]
            return jnp.concatenate([drawn(s, **init) for s in shapes], axis=-2)

        def stacked(_key: jax.Array, shape: tuple[int, ...], _dtype: Any) -> jax.Array:
            return jnp.stack([drawn(shape, **init) for _ in widths])

        conv = functools.partial(Conv, use_bias=False, rngs=init["rngs"])
        width, inner = widths[-1], 4 * growth_rate
        self.norms = nnx.List([BatchNorm(sum(widths))])
        if bottleneck:
            first = conv(width, inner, (1, 1), kernel_init=joined)
            second = conv(inner, growth_rate, (3, 3), kernel_init=stacked)
            self.norms.append(BatchNorm((len(widths), inner)))
            self.convs = nnx.List([first, second])
        else:
            self.convs = nnx.List([conv(width, growth_rate, (3, 3), kernel_init=joined)])

    def read(self, maps: jax.Array, known: Tree) -> jax.Array:
        """Return the output of the first convolution for all maps, given their moments."""
        return self.convs[0](jax.nn.relu(self.norms[0](maps, known)))

    def grow(self, y: jax.Array, known: Tree) -> jax.Array:
        """Return the new maps, given the output of `read`."""
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(jax.nn.relu(norm(y, known)))
        return y


class DenseBlock(nnx.Module):
    """`depth` layers, each of which reads the maps of all before it, as a few loops.

    [batch, H, W, channels] to [batch, H, W, channels + depth · growth_rate]. See `dense_loop` for
    the computation.
    """

    inside = "layer"  # the attribute with the variables of all layers

    def __init__(
        self,
        channels: int,
        depth: int,
        growth_rate: int,
        *,
        bottleneck: bool,
        dropout: Any,
        **init: Unpack[Init],
    ):
        self.widths = tuple(channels + layer * growth_rate for layer in range(depth))
        self.depth, self.growth_rate = depth, growth_rate
        self.layer = DenseLayer(self.widths, growth_rate, bottleneck=bottleneck, **init)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        factors = None
        if self.dropout.active:
            shape = (self.depth, *x.shape[:-1], self.growth_rate)
            factors = self.dropout(jnp.ones(shape, x.dtype), rngs=rngs)
        norms = self.layer.norms
        training = not all(norm.use_running_average for norm in norms)
        graph, *variables = nnx.split(self.layer, *VARIABLES)
        weights, averages = tuple(variables[:2]), tuple(variables[2:])
        layers = Layers(graph, self.widths, self.growth_rate, len(norms) > 1, training)
        maps, known, inner = run(layers, weights, averages, x, factors)
        count = x.size // x.shape[-1]
        of_layers = np.concatenate([np.arange(width) for width in self.widths])
        of_first = jax.tree.map(lambda m: m[of_layers], known)
        for norm, found in zip(norms, (of_first, inner), strict=False):
            if not norm.use_running_average:
                norm.follow(found, count)
        return maps

    def widths_of(self, part: str) -> tuple[Sequence[int], int] | None:
        """Return the channels that each layer's part reads, and the sum that their loops compute.

        None: all read the same number.
        """
        if not part.endswith(".0"):
            return None
        loops = segments(self.widths)
        return self.widths, sum(len(loop) * self.widths[loop[-1]] for loop in loops)


def _joined(path: tuple, _: Any) -> bool:
    """Return True for variables of the first normalisation and convolution."""
    return 0 in path


# filters of `nnx.split`: joined and stacked weights, joined and stacked averages
VARIABLES = (nnx.All(nnx.Param, _joined), nnx.Param, _joined, ...)


class Transition(nnx.Module):
    """Norm, relu, a 1x1 convolution to `features` maps and 2x2 average pooling."""

    def __init__(self, channels: int, features: int, **init: Unpack[Init]):
        self.norm = BatchNorm(channels)
        self.conv = Conv(channels, features, (1, 1), use_bias=False, **init)

    def __call__(self, x: jax.Array) -> jax.Array:
        return avg_pool(self.conv(jax.nn.relu(self.norm(x))), 2)


def _with_streams(block: DenseBlock, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, rngs=rngs)


class DenseNet(nnx.Module):
    """Dense blocks, in which each layer reads the maps of all layers before it.

    [batch, H, W, C] to logits [batch, num_classes]. A transition between blocks multiplies the
    number of maps by `compression` (θ). The first convolution has `initial` maps: it is 7x7 at
    stride 2 before 3x3 max pooling, or for images below 96 pixels 3x3 alone, as in the networks for
    CIFAR-10.
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
        **init: Unpack[Init],
    ):
        self.small = is_small(input_shape) if stem is None else stem == "cifar"
        kernel, stride, padding = ((3, 3), 1, 1) if self.small else ((7, 7), 2, 3)
        options: dict[str, Any] = {"strides": stride, "padding": padding, "use_bias": False}
        self.conv = Conv(input_shape[-1], initial, kernel, **options, **init)
        self.norm = None if self.small else BatchNorm(initial)
        self.blocks: nnx.List = nnx.List()
        self.transitions: nnx.List = nnx.List()
        channels = initial
        for index, depth in enumerate(blocks):
            if index > 0:
                features = int(channels * compression)
                self.transitions.append(Transition(channels, features, **init))
                channels = features
            options = {"bottleneck": bottleneck, "dropout": dropout, **init}
            self.blocks.append(DenseBlock(channels, depth, growth_rate, **options))
            channels += depth * growth_rate
        self.last_norm = BatchNorm(channels)
        self.output = Dense(channels, num_classes, **init)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv(x)
        if self.norm is not None:
            x = max_pool(jax.nn.relu(self.norm(x)), 3, strides=2, padding=1)
        for index, block in enumerate(self.blocks):
            if index > 0:
                x = as_block(self.transitions[index - 1], x)
            x = as_block(_with_streams, block, x, rngs)
        return self.output(global_avg_pool(jax.nn.relu(self.last_norm(x))))
