"""Densely connected layers (Huang, Liu, van der Maaten & Weinberger 2017) as one loop."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.models.dense_loop import Layers, Tree, run, segments
from experiments.models.layers import BatchNorm, Conv, Dropout


class DenseLayer(nnx.Module):
    """`growth_rate` new maps: norm, relu, 3x3; as a bottleneck norm, relu, 1x1 before that.

    The 1x1 convolution gives out four times as many maps (section 3, "Bottleneck layers"). The
    variables are those of all layers of a loop, which read `widths` channels: of the first
    normalisation and convolution joined along the input channels, [Σ widths] and [k, k, Σ widths,
    features], of the second ones stacked, [depth, ...].
    """

    def __init__(
        self,
        widths: Sequence[int],
        growth_rate: int,
        *,
        bottleneck: bool,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        def joined(_key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            *window, _, features = shape
            shapes = [(*window, width, features) for width in widths]
            return jnp.concatenate([kernel_init(rngs.params(), s, dtype) for s in shapes], axis=-2)

        def stacked(_key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.stack([kernel_init(rngs.params(), shape, dtype) for _ in widths])

        conv = functools.partial(Conv, use_bias=False, rngs=rngs)
        width, inner = widths[-1], 4 * growth_rate
        self.norms = nnx.List([BatchNorm(sum(widths))])
        if bottleneck:
            self.norms.append(BatchNorm((len(widths), inner)))
            self.convs = nnx.List(
                [
                    conv(width, inner, (1, 1), kernel_init=joined),
                    conv(inner, growth_rate, (3, 3), kernel_init=stacked),
                ]
            )
        else:
            self.convs = nnx.List([conv(width, growth_rate, (3, 3), kernel_init=joined)])

    def read(self, maps: jax.Array, known: Tree) -> jax.Array:
        """What the first convolution makes of all maps, whose moments are known."""
        return self.convs[0](jax.nn.relu(self.norms[0](maps, known)))

    def grow(self, y: jax.Array, known: Tree) -> jax.Array:
        """The new maps, from what `read` gave."""
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(jax.nn.relu(norm(y, known)))
        return y


class DenseBlock(nnx.Module):
    """`depth` layers, each of which sees the maps of all before it, in few loops.

    [batch, H, W, channels] to [batch, H, W, channels + depth · growth_rate]. All layers work on an
    array for the final maps, in which those that are not there yet count as zero: their scale and
    bias are. So the program and the optimizer are as small as those of one layer.
    """

    inside = "layer"  # the attribute that stands for all of them

    def __init__(
        self,
        channels: int,
        depth: int,
        growth_rate: int,
        *,
        bottleneck: bool,
        dropout: Any,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        self.widths = tuple(channels + layer * growth_rate for layer in range(depth))
        self.depth, self.growth_rate = depth, growth_rate
        self.layer = DenseLayer(
            self.widths, growth_rate, bottleneck=bottleneck, kernel_init=kernel_init, rngs=rngs
        )
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

    def widths_of(self, part: str) -> "Widths | None":
        """The channels that a part of the layers reads; None where they are alike in all."""
        if not part.endswith(".0"):
            return None
        loops = segments(self.widths)
        return Widths(self.widths, sum(len(loop) * self.widths[loop[-1]] for loop in loops))


class Widths(NamedTuple):
    """Channels that layers read: the `own` of each, and how many their loops compute in all."""

    own: tuple[int, ...]
    computed: int


def _joined(path: tuple, _: Any) -> bool:
    """Whether a variable is of the first normalisation or convolution."""
    return 0 in path


VARIABLES = (nnx.All(nnx.Param, _joined), nnx.Param, _joined, ...)
