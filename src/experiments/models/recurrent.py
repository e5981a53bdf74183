"""Recurrent networks that read a sequence: any cell, any depth, one direction or both."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.errors import UserError
from experiments.models.cells import CELLS, NORMALISED_CELLS, layer_norm
from experiments.models.layers import Dense, Dropout
from experiments.models.reading import Reader, project, real_steps, steps_and_features, vectors
from experiments.ops.lstm import is_worth_it, lstm
from experiments.ops.recurrence import Carry, recur
from experiments.types import Decay, PositiveInt

CellName = Literal["rnn", "lstm", "peephole_lstm", "gru"]
FORGET_GATE = 1  # its place among the gates of an LSTM


class Carried(nnx.Variable):
    """State that the next batch goes on from."""


class Direction(nnx.Module):
    """One layer of cells in one direction: [B, T, in_features] (or tokens) to [B, T, hidden]."""

    def __init__(
        self,
        cell: CellName,
        in_features: int,
        hidden: int,
        *,
        layer_norm: bool,
        forget_bias: Any,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        self.cell = (NORMALISED_CELLS if layer_norm else CELLS)[cell]
        self.hidden = hidden
        gates = self.cell.gates

        def kernel(rows: int) -> nnx.Param:  # drawn gate by gate: a gate is a layer of its own
            blocks = [kernel_init(rngs.params(), (rows, hidden), jnp.float32) for _ in range(gates)]
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
        """The state before the first step: zeros."""
        return (jnp.zeros((batch, self.hidden), dtype),) * self.cell.states

    def __call__(
        self, x: jax.Array, carry: Carry, keep: jax.Array | None, *, reverse: bool = False
    ) -> tuple[jax.Array, Carry]:
        """The outputs and the last carry.

        `keep` is bool [T, B, 1] or None: where False, the state stays as it is. With `reverse` the
        last step comes first.
        """
        # by time before it grows by its projection: the transposed copy is smaller, or cancels out
        x = vectors(jnp.swapaxes(x, 0, 1), self.kernel[...])
        kernel, recurrent, bias = self.kernel[...], self.recurrent_kernel[...], self.bias[...]
        if self.cell is CELLS["lstm"] and x.ndim == 3 and is_worth_it(x, recurrent):
            outputs, end = lstm(reverse, x, kernel, recurrent, bias, carry, keep)
            return jnp.swapaxes(outputs, 0, 1), end
        projected = project(x, kernel)
        if self.input_scale is not None:
            projected = layer_norm(projected, self.input_scale[...])
        own = {name: parameter[...] for name, parameter in self.own.items()}
        apart = self.cell.apart * self.hidden
        outputs, end = recur(
            self.cell.update, apart, reverse, projected, bias, recurrent, own, carry, keep
        )
        return jnp.swapaxes(outputs, 0, 1), end


class Stack(nnx.Module):
    """Layers of cells, each reading the outputs of the one below, with dropout after each.

    [B, T, in_features] to [B, T, width]. Dropout does not touch the state that a layer hands to
    itself (Zaremba et al. 2014).
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
        layer_norm: bool,
        forget_bias: Any,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        directions = 2 if bidirectional else 1
        self.width = directions * hidden
        sizes = [in_features] + [self.width] * (layers - 1)
        self.layers = nnx.List(
            nnx.List(
                Direction(
                    cell,
                    size,
                    hidden,
                    layer_norm=layer_norm,
                    forget_bias=forget_bias,
                    kernel_init=kernel_init,
                    rngs=rngs,
                )
                for _ in range(directions)
            )
            for size in sizes
        )
        self.dropout = Dropout(dropout)

    def start(self, batch: int, dtype: Any) -> list[list[Carry]]:
        """The state of every layer and direction before the first step."""
        return [[direction.start(batch, dtype) for direction in layer] for layer in self.layers]

    def __call__(
        self,
        x: jax.Array,
        carries: Sequence[Sequence[Carry]],
        keep: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, list[list[Carry]]]:
        """The outputs of the top layer and the state of every layer and direction at its end."""
        ends = []
        for layer, starts in zip(self.layers, carries, strict=True):
            both = [
                direction(x, carry, keep, reverse=bool(index))
                for index, (direction, carry) in enumerate(zip(layer, starts, strict=True))
            ]
            x = self.dropout(jnp.concatenate([outputs for outputs, _ in both], -1), rngs=rngs)
            ends.append([end for _, end in both])
        return x, ends


class Recurrent(nnx.Module):
    """Reads a sequence and gives one output at its end, or one a step.

    A sequence is [B, T, F], integers [B, T] that stand for one-hot vectors, or images [B, H, W, C],
    which are read row by row.

    Args:
      cell: see `experiments.models.cells`.
      hidden: units of each layer (and direction).
      layers: how many, one on top of the other.
      bidirectional: every layer also reads backwards; outputs stand side by side.
      dropout: after each layer, never from a step to the next.
      layer_norm: normalise the pre-activations (Ba et al. 2016).
      forget_bias: initial bias of an LSTM's forget gate (Gers et al. 2000).
      embedding: size of a learned vector for each integer; None: one-hot vectors.
      streams: rows of a training batch, each of which goes on where that row of the batch before
        ended (truncated back-propagation through time); None: every sequence starts at zero.
    """

    sequential = True  # can give an output a step

    def __init__(
        self,
        *,
        cell: CellName,
        hidden: PositiveInt,
        layers: PositiveInt,
        bidirectional: bool,
        dropout: Decay,
        layer_norm: bool,
        forget_bias: float,
        embedding: PositiveInt | None,
        streams: PositiveInt | None,
        input_shape: tuple[int, ...],
        num_classes: int,
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        _, features = steps_and_features(input_shape)
        self.reader = Reader(features, embedding, kernel_init=kernel_init, rngs=rngs)
        self.stack = Stack(
            cell,
            embedding or features,
            hidden,
            layers,
            bidirectional=bidirectional,
            dropout=dropout,
            layer_norm=layer_norm,
            forget_bias=forget_bias,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.output = Dense(self.stack.width, num_classes, kernel_init=kernel_init, rngs=rngs)
        self.bidirectional, self.streams = bidirectional, streams
        if streams is None:
            self.carried = None
        else:
            states = self.stack.layers[0][0].cell.states
            self.carried = Carried(np.zeros((layers, states, streams, hidden), np.float32))

    @classmethod
    def check_config(cls, arguments: dict[str, Any], path: str) -> None:
        """Raises a UserError where state can not be carried on."""
        if arguments["bidirectional"] and arguments["streams"] is not None:
            raise UserError(
                f"{path}.bidirectional=true: what is read backwards has no state to go on from; "
                f"say {path}.streams=null"
            )

    def __call__(
        self,
        x: jax.Array,
        *,
        steps: int | None = None,
        lengths: jax.Array | None = None,
        restart: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """The output at the end of each sequence [B, num_classes], or with `steps` of each step.

        Args:
          x: the sequences.
          steps: how many outputs are wanted, [B, steps, num_classes]; must be T.
          lengths: int [B], the real steps of each sequence (None: all). What comes after them
            changes nothing.
          restart: bool [B], rows that do not go on from the batch before; for carried state.
          rngs: `dropout`.

        Raises:
          UserError: another number of outputs than of steps is wanted, or the batch has another
            number of rows than there are carried states.
        """
        inputs = self.reader(x)
        (batch, length), dtype = inputs.shape[:2], self.output.kernel.dtype
        if steps not in (None, length):
            raise UserError(
                f"this model gives an output for each of the {length} steps that it reads, but the "
                f"data want {steps}: use model=encoder_decoder"
            )
        carries = self.stack.start(batch, dtype)
        carried = None if restart is None else self.carried
        if carried is not None:
            if batch != self.streams:
                raise UserError(
                    f"model.streams={self.streams} goes with batches of as many rows, "
                    f"not data.batch_size={batch}"
                )
            kept = jnp.where(jnp.asarray(restart)[:, None], 0, carried[...]).astype(dtype)
            carries = [[tuple(layer)] for layer in kept]
        outputs, ends = self.stack(inputs, carries, real_steps(length, lengths), rngs)
        if carried is not None:
            left = jnp.stack([jnp.stack(end) for (end,) in ends]).astype(jnp.float32)
            carried.set_value(jax.lax.stop_gradient(left))
        if steps is None:
            # the state at the end of the layer's own direction: the last real step, or the first
            top = jnp.concatenate([end[0] for end in ends[-1]], axis=-1)
            return self.output(self.stack.dropout(top, rngs=rngs))
        return self.output(outputs)

    def start(self, batch: int) -> list[list[Carry]]:
        """The state before anything is read."""
        return self.stack.start(batch, self.output.kernel.dtype)

    def advance(
        self, tokens: jax.Array, carries: list[list[Carry]]
    ) -> tuple[jax.Array, list[list[Carry]]]:
        """Reads on from a state: int [B, T] to the logits of what follows each, and the state."""
        outputs, ends = self.stack(self.reader(tokens), carries)
        return self.output(outputs), ends
