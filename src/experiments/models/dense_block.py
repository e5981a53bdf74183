"""Densely connected layers (Huang, Liu, van der Maaten & Weinberger 2017) as one loop."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.initializers import Initializer
from experiments.models.layers import BatchNorm, Conv, Dropout, moments

WIDENING = 2.0  # how much wider than the first layer of a loop its last one may be

Tree = Any


def segments(widths: Sequence[int]) -> list[range]:
    """The layers that share a loop, of layers that read so many channels.

    In a loop every layer costs as much as the widest. With `WIDENING` at most a third of that is
    for nothing; each loop more is a second of XLA's time.
    """
    firsts = [0]
    for layer, width in enumerate(widths):
        if width > WIDENING * widths[firsts[-1]]:
            firsts.append(layer)
    return list(itertools.starmap(range, itertools.pairwise([*firsts, len(widths)])))


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
        maps, known, inner = _run(layers, weights, averages, x, factors)
        count = x.size // x.shape[-1]
        of_layers = np.concatenate([np.arange(width) for width in self.widths])
        for norm, found in zip(norms, (jax.tree.map(lambda m: m[of_layers], known), inner)):
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

    def places(self, layers: range) -> tuple[np.ndarray, ...]:
        """[layers] each: their numbers, first places in joined variables and numbers of places."""
        widths = np.array(self.widths)
        numbers = np.array(layers)
        return numbers, (np.cumsum(widths) - widths)[numbers], widths[numbers]

    def moments(self, x: jax.Array) -> Tree:
        """Those of new maps; nobody reads them in evaluation."""
        if self.training:
            return moments(x)
        zeros = jnp.zeros(x.shape[-1], jnp.promote_types(x.dtype, jnp.float32))
        return zeros, zeros

    def layer(self, weights: Tree, averages: Tree) -> DenseLayer:
        """The module with one layer's variables."""
        return nnx.merge(self.graph, *weights, *averages)


def _of_layer(variables: Tree, place: tuple, widest: int) -> Tree:
    """One layer's variables, the joined ones as long as those of the `widest` layer in its loop.

    What is there beyond its own belongs to later layers. Scales and biases are 0 there and with
    them all that kernels are multiplied by, hence also the kernels' gradients. The end of the
    variables is never passed, as the last layer is the widest of all.
    """
    number, start, width = place

    def joined(a: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(a, start, widest, _channels(a))
        return jnp.where(jnp.arange(widest) < width, part, 0) if a.ndim == 1 else part

    return tuple(
        (jax.tree.map(joined, parts[0]), jax.tree.map(lambda a: _row(a, number), parts[1]))
        for parts in variables
    )


def _add_of_layer(gradients: Tree, of_layer: Tree, place: tuple) -> Tree:
    """The gradients of a block's parameters with those of one layer added."""
    number, start, _ = place
    joined = jax.tree.map(lambda a, b: _add(a, b, start, _channels(a)), gradients[0], of_layer[0])
    stacked = jax.tree.map(lambda a, b: _put(a, b[None], number, 0), gradients[1], of_layer[1])
    return joined, stacked


def _channels(a: jax.Array) -> int:
    """The axis of input channels: of a kernel, or of the only axis that norms have."""
    return max(a.ndim - 2, 0)


def _first(known: Tree, channels: int) -> Tree:
    return jax.tree.map(lambda m: m[:channels], known)


def _row(a: jax.Array, number: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(a, number, keepdims=False)


def _put(a: jax.Array, part: jax.Array, start: Any, axis: int = -1) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(a, part, start, axis)


def _add(a: jax.Array, part: jax.Array, start: Any, axis: int) -> jax.Array:
    old = jax.lax.dynamic_slice_in_dim(a, start, part.shape[axis], axis)
    return _put(a, old + part, start, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(layers: Layers, *arguments: Tree) -> tuple[jax.Array, Tree, Tree]:
    """All maps, their moments, and those between the convolutions of each layer.

    The moments are for running averages alone: no gradient comes through them.
    """
    return _forward(layers, *arguments)[0]


def _forward(layers: Layers, weights: Tree, averages: Tree, x: jax.Array, factors: Tree) -> tuple:
    def body(widest: int, carry: tuple, place: tuple) -> tuple[tuple, None]:
        maps, known, kept = carry
        number, _, width = place
        layer = layers.layer(*_of_layer((weights, averages), place, widest))
        y = layer.read(maps[..., :widest], _first(known, widest))
        inner = layers.moments(y) if layers.bottleneck else None
        new = layer.grow(y, inner)
        if factors is not None:
            new *= _row(factors, number)
        maps = _put(maps, new, width)
        known = jax.tree.map(lambda m, n: _put(m, n, width), known, layers.moments(new))
        if layers.bottleneck:
            kept = jax.tree.map(lambda k, n: _put(k, n[None], number, 0), kept, (y, inner))
        return (maps, known, kept), None

    depth, grown = len(layers.widths), len(layers.widths) * layers.growth_rate
    maps = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, grown)])
    known = jax.tree.map(lambda m: jnp.pad(m, (0, grown)), layers.moments(x))
    kept = None
    if layers.bottleneck:
        y = jnp.zeros((depth, *x.shape[:-1], 4 * layers.growth_rate), x.dtype)
        kept = y, jax.tree.map(lambda m: jnp.zeros((depth, y.shape[-1]), m.dtype), known)
    carry = maps, known, kept
    for segment in segments(layers.widths):
        loop = functools.partial(body, layers.widths[segment[-1]])
        carry, _ = jax.lax.scan(loop, carry, layers.places(segment))
    maps, known, kept = carry
    return (maps, known, kept and kept[1]), (weights, averages, maps, known, kept, factors)


def _backward(layers: Layers, residuals: tuple, gradients: tuple) -> tuple:
    """From the last layer to the first.

    A layer's input is a part of the final maps, so that only what its 1x1 convolution gave has
    been kept (Pleiss et al. 2017, arXiv:1707.06990).
    """
    weights, averages, maps, known, kept, factors = residuals

    def body(seen: tuple, carry: tuple, place: tuple) -> tuple[tuple, None]:
        g_maps, g_known, g_weights = carry
        number, _, width = place
        (joined, stacked), of_layer = _of_layer((weights, averages), place, seen[0].shape[-1])
        new, g_new, g_moments = jax.tree.map(
            lambda m: jax.lax.dynamic_slice_in_dim(m, width, layers.growth_rate, -1),
            (maps, g_maps, g_known),
        )
        g_y = g_new + _back(layers.moments, g_moments, new)[0]
        if factors is not None:
            g_y *= _row(factors, number)
        g_stacked = stacked
        if layers.bottleneck:
            y, inner = jax.tree.map(lambda k: _row(k, number), kept)
            grow = lambda stacked, *y: layers.layer((joined, stacked), of_layer).grow(*y)
            g_stacked, g_y, g_inner = _back(grow, g_y, stacked, y, inner)
            g_y += _back(layers.moments, g_inner, y)[0]
        read = lambda joined, *seen: layers.layer((joined, stacked), of_layer).read(*seen)
        g_joined, *g_seen = _back(read, g_y, joined, *seen)
        g_maps, g_known = jax.tree.map(
            lambda a, b: _add(a, b, 0, -1), (g_maps, g_known), tuple(g_seen)
        )
        g_weights = _add_of_layer(g_weights, (g_joined, g_stacked), place)
        return (g_maps, g_known, g_weights), None

    carry = (gradients[0], *jax.tree.map(jnp.zeros_like, (known, weights)))
    for segment in reversed(segments(layers.widths)):
        widest = layers.widths[segment[-1]]
        loop = functools.partial(body, (maps[..., :widest], _first(known, widest)))
        carry, _ = jax.lax.scan(loop, carry, layers.places(segment), reverse=True)
    g_maps, g_known, g_weights = carry
    channels = layers.widths[0]
    x, g_x = maps[..., :channels], g_maps[..., :channels]
    g_x += _back(layers.moments, _first(g_known, channels), x)[0]
    return g_weights, None, g_x, None


def _back(function: Callable, gradient: Tree, *arguments: Tree) -> tuple:
    """The gradients of the arguments of `function`, from that of what it gives."""
    return jax.vjp(function, *arguments)[1](gradient)


_run.defvjp(_forward, _backward)
