"""Densely connected layers (Huang, Liu, van der Maaten & Weinberger 2017) as one loop."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.initializers import Initializer
from experiments.models.layers import BatchNorm, Conv, Dropout, moments

WIDENING = 2.0  # how much wider than the first layer of a loop its last one may be

Tree = Any


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
        def joined(_: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            *window, _, features = shape
            shapes = [(*window, width, features) for width in widths]
            return jnp.concatenate([kernel_init(rngs.params(), s, dtype) for s in shapes], axis=-2)

        def stacked(_: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
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
        self.growth_rate = growth_rate
        self.layer = DenseLayer(
            self.widths, growth_rate, bottleneck=bottleneck, kernel_init=kernel_init, rngs=rngs
        )
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        depth = len(self.widths)
        factors = None
        if self.dropout.active:
            shape = (depth, *x.shape[:-1], self.growth_rate)
            factors = self.dropout(jnp.ones(shape, x.dtype), rngs=rngs)
        norms = self.layer.norms
        training = not all(norm.use_running_average for norm in norms)
        graph, *variables = nnx.split(self.layer, *VARIABLES)
        layers = Layers(graph, self.widths, self.growth_rate, len(norms) > 1, training)
        maps, known, inner = _run(layers, *variables, x, factors)
        count = x.size // x.shape[-1]
        of_layers = np.concatenate([np.arange(width) for width in self.widths])
        for norm, found in zip(norms, (jax.tree.map(lambda m: m[of_layers], known), inner)):
            if not norm.use_running_average:
                norm.follow(found, count)
        return maps


def _first(path: tuple, _: Any) -> bool:
    """Whether a variable is of the first normalisation or convolution."""
    return 0 in path


VARIABLES = (nnx.All(nnx.Param, _first), nnx.Param, _first, ...)


@dataclasses.dataclass(frozen=True)
class Layers:
    """What the layers of a block are made of, besides arrays.

    In training a map's moments are those of the batch: they are computed once, when it is new, for
    all layers that will read it.
    """

    graph: Any
    widths: tuple[int, ...]
    growth_rate: int
    bottleneck: bool
    training: bool

    def segments(self) -> list[range]:
        """The layers that share a loop.

        There every layer costs as much as the widest. With `WIDENING` at most a third of that is
        for nothing.
        """
        firsts = [0]
        for layer, width in enumerate(self.widths):
            if width > WIDENING * self.widths[firsts[-1]]:
                firsts.append(layer)
        return list(itertools.starmap(range, itertools.pairwise([*firsts, len(self.widths)])))

    def places(self, layers: range) -> tuple[np.ndarray, np.ndarray]:
        """[layers] each: the first place in the joined variables, and how many there are."""
        widths = np.array(self.widths)
        return (np.cumsum(widths) - widths)[layers], widths[layers]

    def moments(self, x: jax.Array) -> Tree:
        """Those of new maps; nobody reads them in evaluation."""
        if self.training:
            return moments(x)
        zeros = jnp.zeros(x.shape[-1], jnp.promote_types(x.dtype, jnp.float32))
        return zeros, zeros

    def layer(self, *variables: Tree) -> DenseLayer:
        """The module with one layer's variables."""
        return nnx.merge(self.graph, *variables)


def _of_layer(joined: Tree, start: jax.Array, width: jax.Array, widest: int) -> Tree:
    """One layer's part of variables that are joined, as long as that of the widest layer.

    What is there beyond `width` belongs to later layers. Scales and biases are 0 there and with
    them all that kernels are multiplied by, hence also the kernels' gradients. The part never ends
    behind the last layer's, as that is the widest.
    """

    def part(a: jax.Array) -> jax.Array:
        sliced = jax.lax.dynamic_slice_in_dim(a, start, widest, axis=_channels(a))
        return jnp.where(jnp.arange(widest) < width, sliced, 0) if a.ndim == 1 else sliced

    return jax.tree.map(part, joined)


def _channels(a: jax.Array) -> int:
    """The axis of input channels of a kernel, or of the one-dimensional variables of a norm."""
    return max(a.ndim - 2, 0)


def _put(a: jax.Array, part: jax.Array, start: Any, axis: int = -1) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(a, part, start, axis)


def _add(a: jax.Array, part: jax.Array, start: Any, axis: int = -1) -> jax.Array:
    old = jax.lax.dynamic_slice_in_dim(a, start, part.shape[axis], axis)
    return _put(a, old + part, start, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(layers: Layers, *arguments: Tree) -> tuple[jax.Array, Tree, Tree]:
    """All maps, their moments, and those between the convolutions of each layer.

    The moments are for running averages alone: no gradient comes through them.
    """
    return _forward(layers, *arguments)[0]


def _forward(
    layers: Layers,
    joined: Tree,
    stacked: Tree,
    joined_averages: Tree,
    stacked_averages: Tree,
    x: jax.Array,
    factors: jax.Array | None,
) -> tuple[tuple, tuple]:
    def body(widest: int, carry: tuple, each: tuple) -> tuple[tuple, tuple]:
        maps, known = carry
        (start, width), weights, averages, factor = each
        read = _of_layer((joined, joined_averages), start, width, widest)
        layer = layers.layer(read[0], weights, read[1], averages)
        y = layer.read(maps[..., :widest], jax.tree.map(lambda m: m[:widest], known))
        inner = layers.moments(y) if layers.bottleneck else None
        new = layer.grow(y, inner)
        new = new if factor is None else new * factor
        known = jax.tree.map(lambda m, n: _put(m, n, width), known, layers.moments(new))
        return (_put(maps, new, width), known), (y, inner) if layers.bottleneck else (None, None)

    grown = len(layers.widths) * layers.growth_rate
    maps = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, grown)])
    carry = maps, jax.tree.map(lambda m: jnp.pad(m, (0, grown)), layers.moments(x))
    kept = []
    for segment in layers.segments():
        of_each = _rows((stacked, stacked_averages, factors), segment)
        loop = functools.partial(body, layers.widths[segment[-1]])
        carry, found = jax.lax.scan(loop, carry, (layers.places(segment), *of_each))
        kept.append(found)
    maps, known = carry
    inner = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(inner for _, inner in kept))
    weights = (joined, stacked, joined_averages, stacked_averages)
    return (maps, known, inner), (weights, maps, known, kept, factors)


def _backward(layers: Layers, residuals: tuple, gradients: tuple) -> tuple:
    """From the last layer to the first.

    A layer's input is a part of the final maps, so that only what its 1x1 convolution gave has
    been kept (Pleiss et al. 2017, arXiv:1707.06990).
    """
    (joined, stacked, joined_averages, stacked_averages), maps, known, kept, factors = residuals

    def body(seen: tuple, carry: tuple, each: tuple) -> tuple[tuple, Tree]:
        widest = seen[0].shape[-1]
        g_maps, g_known, g_joined = carry
        (start, width), weights, averages, factor, (y, inner) = each
        read = _of_layer((joined, joined_averages), start, width, widest)
        part = functools.partial(
            jax.lax.dynamic_slice_in_dim,
            start_index=width,
            slice_size=layers.growth_rate,
            axis=-1,
        )
        _, back = jax.vjp(layers.moments, part(maps))
        g_new = part(g_maps) + back(jax.tree.map(part, g_known))[0]
        g_y = g_new if factor is None else g_new * factor
        g_weights = weights
        if layers.bottleneck:
            grow = lambda w, *y: layers.layer(read[0], w, read[1], averages).grow(*y)
            _, back = jax.vjp(grow, weights, y, inner)
            g_weights, g_y, g_inner = back(g_y)
            _, back = jax.vjp(layers.moments, y)
            g_y += back(g_inner)[0]
        reading = lambda r, *seen: layers.layer(r, weights, read[1], averages).read(*seen)
        _, back = jax.vjp(reading, read[0], *seen)
        g_read, *g_seen = back(g_y)
        g_maps, g_known = jax.tree.map(
            lambda a, b: _add(a, b, 0), (g_maps, g_known), tuple(g_seen)
        )
        g_joined = jax.tree.map(lambda a, b: _add(a, b, start, _channels(a)), g_joined, g_read)
        return (g_maps, g_known, g_joined), g_weights

    carry = (gradients[0], *jax.tree.map(jnp.zeros_like, (known, joined)))
    g_stacked = []
    for segment, found in reversed(list(zip(layers.segments(), kept, strict=True))):
        of_each = _rows((stacked, stacked_averages, factors), segment)
        widest = layers.widths[segment[-1]]
        seen = jax.tree.map(lambda m, widest=widest: m[..., :widest], (maps, known))
        loop = functools.partial(body, seen)
        each = (layers.places(segment), *of_each, found)
        carry, g_weights = jax.lax.scan(loop, carry, each, reverse=True)
        g_stacked.insert(0, g_weights)
    g_maps, g_known, g_joined = carry
    channels = layers.widths[0]
    _, back = jax.vjp(layers.moments, maps[..., :channels])
    g_x = g_maps[..., :channels] + back(jax.tree.map(lambda m: m[:channels], g_known))[0]
    g_stacked = jax.tree.map(lambda *parts: jnp.concatenate(parts), *g_stacked)
    return g_joined, g_stacked, None, None, g_x, None


def _rows(tree: Tree, layers: range) -> Tree:
    """The part of stacked arrays that is for these layers."""
    return jax.tree.map(lambda a: a[layers.start : layers.stop], tree)


_run.defvjp(_forward, _backward)
