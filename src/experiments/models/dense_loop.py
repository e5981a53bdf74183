"""The loops over the layers of a dense block, forwards and backwards.

All layers work on one array for the block's final maps, in which the maps of later layers count as
zero. So the program and the optimizer are as small as those of a few layers.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.layers import moments

WIDENING = 2.0  # largest ratio of the channels that the last and the first layer of a loop read

Tree = Any


def segments(widths: Sequence[int]) -> list[range]:
    """Return which layers share a loop, given the channels that each layer reads.

    In a loop every layer costs as much as the widest, and each loop more takes XLA time to compile.
    With `WIDENING` at most a third of the computation is wasted.
    """
    firsts = [0]
    for layer, width in enumerate(widths):
        if width > WIDENING * widths[firsts[-1]]:
            firsts.append(layer)
    return list(itertools.starmap(range, itertools.pairwise([*firsts, len(widths)])))


@dataclasses.dataclass(frozen=True)
class Layers:
    """The static description of a block's layers.

    In training a map is normalised by its moments over the batch, which are computed once, when the
    map is new, for all layers that read it.
    """

    graph: Any
    widths: tuple[int, ...]
    growth_rate: int
    bottleneck: bool
    training: bool

    def places(self, layers: range) -> tuple[np.ndarray, ...]:
        """Return the layers' numbers, offsets in joined variables and widths, [layers] each."""
        widths = np.array(self.widths)
        numbers = np.array(layers)
        return numbers, (np.cumsum(widths) - widths)[numbers], widths[numbers]

    def moments(self, x: jax.Array) -> Tree:
        """Return the moments of new maps; zeros in evaluation, which does not use them."""
        if self.training:
            return moments(x)
        zeros = jnp.zeros(x.shape[-1], jnp.promote_types(x.dtype, jnp.float32))
        return zeros, zeros

    def layer(self, weights: Tree, averages: Tree) -> Any:
        """Return the `DenseLayer` with the variables of one layer."""
        return nnx.merge(self.graph, *weights, *averages)


def _of_layer(variables: Tree, place: tuple, widest: int) -> Tree:
    """Return one layer's variables, the joined ones for the `widest` layer's number of channels.

    Channels beyond the layer's own belong to later layers. Scales and biases are set to 0 there, so
    that the rectifier gives 0 and passes no gradient: kernels there have no effect and no gradient.
    The slice stays within the variables, since the last layer is the widest of all.
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
    """Return the gradients of a block's parameters with those of one layer added."""
    number, start, _ = place
    joined = jax.tree.map(lambda a, b: _add(a, b, start, _channels(a)), gradients[0], of_layer[0])
    stacked = jax.tree.map(lambda a, b: _put(a, b[None], number, 0), gradients[1], of_layer[1])
    return joined, stacked


def _channels(a: jax.Array) -> int:
    """Return the axis of input channels: the last but one of a kernel, the only one of a norm."""
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
def run(layers: Layers, *arguments: Tree) -> tuple[jax.Array, Tree, Tree]:
    """Return all maps, their moments, and the moments between the convolutions of each layer.

    The moments are for the running averages: no gradient passes through them.
    """
    return _forward(layers, *arguments)[0]


def _forward(layers: Layers, weights: Tree, averages: Tree, x: jax.Array, factors: Tree) -> tuple:
    """Return the outputs of `run`, and the residuals for the backward pass.

    `weights` and `averages` are (joined, stacked) variables, `x` is [N, H, W, channels]; `factors`
    [depth, N, H, W, growth_rate], or None, are what dropout multiplies new maps by.
    """

    def body(widest: int, carry: tuple, place: tuple) -> tuple[tuple, None]:
        maps, known, saved = carry
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
            saved = jax.tree.map(lambda k, n: _put(k, n[None], number, 0), saved, (y, inner))
        return (maps, known, saved), None

    depth, grown = len(layers.widths), len(layers.widths) * layers.growth_rate
    maps = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, grown)])
    known = jax.tree.map(lambda m: jnp.pad(m, (0, grown)), layers.moments(x))
    saved = None
    if layers.bottleneck:
        y = jnp.zeros((depth, *x.shape[:-1], 4 * layers.growth_rate), x.dtype)
        saved = y, jax.tree.map(lambda m: jnp.zeros((depth, y.shape[-1]), m.dtype), known)
    carry = maps, known, saved
    for segment in segments(layers.widths):
        loop = functools.partial(body, layers.widths[segment[-1]])
        carry, _ = jax.lax.scan(loop, carry, layers.places(segment))
    maps, known, saved = carry
    return (maps, known, saved and saved[1]), (weights, averages, maps, known, saved, factors)


def _backward(layers: Layers, residuals: tuple, gradients: tuple) -> tuple:
    """Return the gradients, computed from the last layer to the first.

    A layer's input is a part of the final maps, so only the output of its 1x1 convolution is saved
    (Pleiss et al. 2017, arXiv:1707.06990).
    """
    weights, averages, maps, known, saved, factors = residuals

    def body(seen: tuple, carry: tuple, place: tuple) -> tuple[tuple, None]:
        g_maps, g_known, g_weights = carry
        number, _, width = place
        (joined, stacked), of_layer = _of_layer((weights, averages), place, seen[0].shape[-1])

        def read(joined: Tree, maps: jax.Array, known: Tree) -> jax.Array:
            return layers.layer((joined, stacked), of_layer).read(maps, known)

        def grow(stacked: Tree, y: jax.Array, known: Tree) -> jax.Array:
            return layers.layer((joined, stacked), of_layer).grow(y, known)

        new, g_new, g_moments = jax.tree.map(
            lambda m: jax.lax.dynamic_slice_in_dim(m, width, layers.growth_rate, -1),
            (maps, g_maps, g_known),
        )
        g_y = g_new + _back(layers.moments, g_moments, new)[0]
        if factors is not None:
            g_y *= _row(factors, number)
        g_stacked = stacked  # empty without a bottleneck
        if layers.bottleneck:
            y, inner = jax.tree.map(lambda k: _row(k, number), saved)
            g_stacked, g_y, g_inner = _back(grow, g_y, stacked, y, inner)
            g_y += _back(layers.moments, g_inner, y)[0]
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
    """Return the gradients of the arguments of `function`, given that of its output."""
    return jax.vjp(function, *arguments)[1](gradient)


run.defvjp(_forward, _backward)
