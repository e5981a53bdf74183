"""The parts of recurrent networks: cells, stacks of them, and the reader of their inputs.

Each cell is a `Cell` for `experiments.ops.recurrence.recur`. With z the sum of the projections of
input and previous output, h the output and c the cell state:

    rnn            h' = tanh(z)                                                  (Elman 1990)
    lstm           c' = σ(z_f) c + σ(z_i) tanh(z_g),  h' = σ(z_o) tanh(c')
                   (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000)
    peephole_lstm  z_i and z_f also see p_i c and p_f c, z_o also p_o c'         (Gers & Schmidhuber
                   2000)
    gru            h' = (1 − u) n + u h,  n = tanh(x_n + r (h_n + b))            (Cho et al. 2014,
                   with the reset gate after the matrix product as in cuDNN)

In the layer-normalised form of a cell (Ba et al. 2016, equations 20 to 22) the projection of h is
normalised, and the cell state before it becomes output. The projection of the input is normalised
outside of the recurrence.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import Dropout, Init, drawn
from experiments.ops.lstm import is_worth_it, lstm
from experiments.ops.recurrence import Carry, Cell, Parameters, join, recur

CellName = Literal["rnn", "lstm", "peephole_lstm", "gru"]
FORGET_GATE = 1  # its index among the gates of an LSTM
ONE_HOT = 256  # most different tokens that are multiplied as one-hot vectors


def layer_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Return (x − mean) / deviation over the last axis, times a scale (Ba et al. 2016, eq. 4)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    deviation = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(deviation**2, axis=-1, keepdims=True)
    return (deviation * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype) * scale


def _lstm(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
    _, c = carry
    i, f, g, o = jnp.split(z, 4, axis=-1)
    peephole = parameters.get("peephole")
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    if peephole is not None:
        o = o + peephole[2] * c
    seen = layer_norm(c, parameters["cell_scale"]) if "cell_scale" in parameters else c
    return jax.nn.sigmoid(o) * jnp.tanh(seen), c


def _gru(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
    (h,) = carry
    r, u, from_input, from_output = jnp.split(z, 4, axis=-1)
    n = jnp.tanh(from_input + jax.nn.sigmoid(r) * (from_output + parameters["bias"]))
    u = jax.nn.sigmoid(u)
    return ((1 - u) * n + u * h,)


CELLS = {
    "rnn": Cell(lambda z, *_: (jnp.tanh(z),), gates=1, states=1),
    "lstm": Cell(_lstm, gates=4, states=2),
    "peephole_lstm": Cell(_lstm, gates=4, states=2),
    "gru": Cell(_gru, gates=3, states=1, apart=1),
}


def _normalised(cell: Cell) -> Cell:
    """Return the cell with its recurrent projection layer-normalised."""

    def update(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
        inputs, recurrent = jnp.split(z, 2, axis=-1)
        recurrent = layer_norm(recurrent, parameters["recurrent_scale"])
        width = cell.apart * recurrent.shape[-1] // cell.gates
        return cell.update(join(inputs, recurrent, width), carry, parameters)

    return cell._replace(update=update, apart=cell.gates)


NORMALISED_CELLS = {name: _normalised(cell) for name, cell in CELLS.items()}


class Direction(nnx.Module):
    """One layer of cells in one direction: [B, T, in_features] or tokens to [B, T, hidden]."""

    def __init__(
        self,
        cell: CellName,
        in_features: int,
        hidden: int,
        *,
        layer_norm: bool,
        forget_bias: Any,
        **init: Unpack[Init],
    ):
        self.cell = (NORMALISED_CELLS if layer_norm else CELLS)[cell]
        self.hidden = hidden
        gates = self.cell.gates

        def kernel(rows: int) -> nnx.Param:  # each gate is drawn like a layer
            blocks = [drawn((rows, hidden), **init) for _ in range(gates)]
            return nnx.Param(jnp.concatenate(blocks, axis=1))

        def constant(value: float, *shape: int) -> nnx.Param:
            return nnx.Param(np.full(shape, value, np.float32))

        self.kernel, self.recurrent_kernel = kernel(in_features), kernel(hidden)
        self.bias = constant(0, gates * hidden)
        own = {}
        if "lstm" in cell:
            forget = np.arange(gates * hidden) // hidden == FORGET_GATE
            self.bias = nnx.Param(jnp.where(forget, forget_bias, 0.0).astype(jnp.float32))
            if layer_norm:
                own["cell_scale"] = constant(1, hidden)
        if cell == "peephole_lstm":
            own["peephole"] = constant(0, 3, hidden)
        if cell == "gru":
            own["bias"] = constant(0, hidden)
        if layer_norm:
            own["recurrent_scale"] = constant(1, gates * hidden)
        self.own = nnx.Dict(own)
        self.input_scale = constant(1, gates * hidden) if layer_norm else None

    def start(self, batch: int, dtype: Any) -> Carry:
        """Return the state before the first step, zeros."""
        return (jnp.zeros((batch, self.hidden), dtype),) * self.cell.states

    def __call__(
        self, x: jax.Array, carry: Carry, mask: jax.Array | None, *, reverse: bool = False
    ) -> tuple[jax.Array, Carry]:
        """Return the outputs and the last carry.

        `mask` is bool [T, B, 1] or None: where False, the state does not change. With `reverse` the
        last step comes first.
        """
        # transposed before the projection, which is larger; XLA may then drop the copy altogether
        x = vectors(jnp.swapaxes(x, 0, 1), self.kernel[...])
        kernel, recurrent, bias = self.kernel[...], self.recurrent_kernel[...], self.bias[...]
        if self.cell is CELLS["lstm"] and x.ndim == 3 and is_worth_it(x, recurrent):
            outputs, end = lstm(reverse, x, kernel, recurrent, bias, carry, mask)
            return jnp.swapaxes(outputs, 0, 1), end
        projected = project(x, kernel)
        if self.input_scale is not None:
            projected = layer_norm(projected, self.input_scale[...])
        own = {name: parameter[...] for name, parameter in self.own.items()}
        apart = self.cell.apart * self.hidden
        outputs, end = recur(
            self.cell.update, apart, reverse, projected, bias, recurrent, own, carry, mask
        )
        return jnp.swapaxes(outputs, 0, 1), end


class Stack(nnx.Module):
    """Layers of cells, each reading the outputs of the one below, with dropout after each.

    [B, T, in_features] to [B, T, width]. There is no dropout between the steps of a layer (Zaremba
    et al. 2014).
    """

    def __init__(
        self,
        cell: CellName,
        in_features: int,
        hidden: int,
        layers: int,
        *,
        bidirectional: bool = False,
        dropout: Any,
        **arguments: Any,
    ):
        directions = 2 if bidirectional else 1
        self.width = directions * hidden
        sizes = [in_features] + [self.width] * (layers - 1)
        self.layers = nnx.List(
            nnx.List(Direction(cell, size, hidden, **arguments) for _ in range(directions))
            for size in sizes
        )
        self.dropout = Dropout(dropout)

    def start(self, batch: int, dtype: Any) -> list[list[Carry]]:
        """Return the state of each layer and direction before the first step."""
        return [[direction.start(batch, dtype) for direction in layer] for layer in self.layers]

    def __call__(
        self,
        x: jax.Array,
        carries: Sequence[Sequence[Carry]],
        mask: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, list[list[Carry]]]:
        """Return the outputs of the top layer and the last state of each layer and direction."""
        ends = []
        for layer, starts in zip(self.layers, carries, strict=True):
            both = [
                direction(x, carry, mask, reverse=bool(index))
                for index, (direction, carry) in enumerate(zip(layer, starts, strict=True))
            ]
            x = self.dropout(jnp.concatenate([outputs for outputs, _ in both], -1), rngs=rngs)
            ends.append([end for _, end in both])
        return x, ends


class Reader(nnx.Module):
    """The inputs of a model as features per step [B, T, F]; tokens [B, T] may stay tokens.

    With an `embedding` each token becomes a learned vector of that size.
    """

    def __init__(self, features: int, embedding: int | None, **init: Unpack[Init]):
        table = None if embedding is None else drawn((features, embedding), **init)
        self.table = None if table is None else nnx.Param(table)

    def __call__(self, x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.integer):
            return x if self.table is None else project(x, self.table[...])
        if self.table is not None:
            raise UserError("model.embedding is for sequences of tokens, not of numbers")
        return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))  # a vector: a sequence of scalars


def vectors(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return tokens [B, T] as one-hot vectors if there are few different ones; else `x` as it is.

    With few tokens a matrix product is faster than a look-up of rows, because the gradient of a
    look-up is one addition after the other.
    """
    if jnp.issubdtype(x.dtype, jnp.integer) and len(kernel) <= ONE_HOT:
        return jax.nn.one_hot(x, len(kernel), dtype=kernel.dtype)
    return x


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return x W for all steps as one matrix product: [B, T, F] or tokens [B, T] to [B, T, G]."""
    x = vectors(x, kernel)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return kernel[x]
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:2], -1)


def real_steps(length: int, lengths: jax.Array | None) -> jax.Array | None:
    """Return which steps are within the `lengths` (int [B] or None): bool [T, B, 1] or None."""
    return None if lengths is None else (jnp.arange(length)[:, None] < lengths)[..., None]
