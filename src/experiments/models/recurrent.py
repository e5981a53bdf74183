"""Recurrent networks: readers of a sequence, and writers of one output after the other."""

import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import Dense, Init, flatten
from experiments.models.recurrent_layers import CellName, Reader, Stack, real_steps
from experiments.ops.recurrence import Carry
from experiments.types import Decay, PositiveInt

Carries = list[list[Carry]]


class Carried(nnx.Variable):
    """State with which the next batch starts."""


class Recurrent(nnx.Module):
    """A stack of cells that reads a sequence and gives one output at its end, or one per step.

    A sequence is [B, T, F], integers [B, T] that stand for one-hot vectors, or images [B, H, W, C],
    which are read row by row.

    Args:
      cell: see `experiments.models.recurrent_layers`.
      hidden: units of each layer and direction.
      layers: number of layers.
      bidirectional: each layer also reads backwards; the outputs are concatenated.
      dropout: rate after each layer; there is none between steps.
      layer_norm: normalise the pre-activations (Ba et al. 2016).
      forget_bias: initial bias of an LSTM's forget gate (Gers et al. 2000).
      embedding: size of a learned vector for each integer; None: one-hot vectors.
      streams: rows of a training batch, each of which continues that row of the previous batch
        (truncated back-propagation through time); None: each sequence starts at zero.
    """

    sequential = True  # has an output per step

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
        **init: Unpack[Init],
    ):
        options: dict[str, Any] = {"dropout": dropout, "layer_norm": layer_norm}
        options |= {"forget_bias": forget_bias, "bidirectional": bidirectional, **init}
        features = math.prod(input_shape[1:])  # per step; a vector is a sequence of scalars
        self.reader = Reader(features, embedding, **init)
        self.stack = Stack(cell, embedding or features, hidden, layers, **options)
        self.output = Dense(self.stack.width, num_classes, **init)
        self.bidirectional, self.streams = bidirectional, streams
        if streams is None:
            self.carried = None
        else:
            states = self.stack.layers[0][0].cell.states
            self.carried = Carried(np.zeros((layers, states, streams, hidden), np.float32))

    @classmethod
    def check_config(cls, arguments: dict[str, Any], path: str) -> None:
        """Raise `UserError` for a bidirectional network that carries state to the next batch."""
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
        """Return the output at the end of each sequence, [B, num_classes], or of each step.

        Args:
          x: the sequences.
          steps: number of outputs, which must be T, for [B, steps, num_classes]; None: one output.
          lengths: int [B], the real steps of each sequence (None: all). Later ones are ignored.
          restart: bool [B], rows that do not continue the previous batch; None: no row does.
          rngs: `dropout`.

        Raises:
          UserError: `steps` is not T, or the batch has another number of rows than `streams`.
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
            before = jnp.where(jnp.asarray(restart)[:, None], 0, carried[...]).astype(dtype)
            carries = [[tuple(layer)] for layer in before]
        outputs, ends = self.stack(inputs, carries, real_steps(length, lengths), rngs)
        if carried is not None:
            after = jnp.stack([jnp.stack(end) for (end,) in ends]).astype(jnp.float32)
            carried.set_value(jax.lax.stop_gradient(after))
        if steps is None:
            # each direction's state after its last step: the last real one, or the first
            top = jnp.concatenate([end[0] for end in ends[-1]], axis=-1)
            return self.output(self.stack.dropout(top, rngs=rngs))
        return self.output(outputs)

    def start(self, batch: int) -> Carries:
        """Return the state before the first step, zeros."""
        return self.stack.start(batch, self.output.kernel.dtype)

    def advance(self, tokens: jax.Array, carries: Carries) -> tuple[jax.Array, Carries]:
        """Continue from a state: int [B, T] to an output for each token, and the last state."""
        outputs, ends = self.stack(self.reader(tokens), carries)
        return self.output(outputs), ends


class Writer(nnx.Module):
    """A decoder: each step reads the previous output, the first one zeros."""

    def __init__(self, stack: Stack, outputs: int, **init: Unpack[Init]):
        self.stack = stack  # of `outputs` input features
        self.output = Dense(stack.width, outputs, **init)
        self.outputs = outputs

    def teacher_forced(
        self, targets: jax.Array, carries: Carries, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Return outputs [B, T, outputs], each after the true previous class of `targets` [B, T].

        References:
          Williams & Zipser 1989, "A learning algorithm for continually running fully recurrent
          neural networks".
        """
        previous = jax.nn.one_hot(targets, self.outputs, dtype=self.output.kernel.dtype)
        previous = jnp.concatenate([jnp.zeros_like(previous[:, :1]), previous[:, :-1]], axis=1)
        states, _ = self.stack(previous, carries, rngs=rngs)
        return self.output(states)

    def free_running(
        self, steps: int | None, carries: Carries, *, classes: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Return outputs [B, steps, outputs], each after the writer's own previous output.

        Without `steps` it is one output, [B, outputs].

        With `classes` each step reads the most probable class, else the previous output itself.
        """
        training = not self.stack.dropout.deterministic
        key = rngs.dropout() if training and rngs is not None else None
        batch = carries[0][0][0].shape[0]

        def step(state, index):
            last, carries = state
            own = None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, index))
            hidden, carries = self.stack(last[:, None], carries, rngs=own)
            output = self.output(hidden[:, 0])
            written = output
            if classes:
                written = jax.nn.one_hot(jnp.argmax(output, -1), self.outputs, dtype=output.dtype)
            return (written, carries), output

        zeros = jnp.zeros((batch, self.outputs), self.output.kernel.dtype)
        _, outputs = jax.lax.scan(step, (zeros, carries), jnp.arange(steps or 1))
        return outputs[0] if steps is None else jnp.swapaxes(outputs, 0, 1)


class EncoderDecoder(nnx.Module):
    """Two stacks of cells: one reads a sequence, the other writes one of any length.

    The second starts in the last state of the first (Sutskever et al. 2014). Inputs and arguments
    are those of `Recurrent`; the outputs for tokens are classes, for numbers numbers.
    """

    sequential = True
    writes = True  # takes `targets` for teacher forcing

    def __init__(
        self,
        *,
        cell: CellName,
        hidden: PositiveInt,
        layers: PositiveInt,
        dropout: Decay,
        layer_norm: bool,
        forget_bias: float,
        embedding: PositiveInt | None,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        options: dict[str, Any] = {"dropout": dropout, "layer_norm": layer_norm}
        options |= {"forget_bias": forget_bias, **init}
        features = math.prod(input_shape[1:])  # per step; a vector is a sequence of scalars
        self.reader = Reader(features, embedding, **init)
        self.encoder = Stack(cell, embedding or features, hidden, layers, **options)
        decoder = Stack(cell, num_classes, hidden, layers, **options)
        self.writer = Writer(decoder, num_classes, **init)

    def __call__(
        self,
        x: jax.Array,
        *,
        steps: int | None = None,
        targets: jax.Array | None = None,
        lengths: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Return the written sequence, [B, steps, num_classes], or one output, [B, num_classes].

        Args:
          x: the sequences that are read.
          steps: number of outputs; None: one.
          targets: int [B, steps], read in place of the previous outputs (teacher forcing).
          lengths: int [B], the real steps of each sequence in x (None: all).
          rngs: `dropout`.
        """
        inputs = self.reader(x)
        batch, length = inputs.shape[:2]
        start = self.encoder.start(batch, self.writer.output.kernel.dtype)
        _, carries = self.encoder(inputs, start, real_steps(length, lengths), rngs)
        if targets is not None:
            return self.writer.teacher_forced(targets, carries, rngs)
        classes = jnp.issubdtype(x.dtype, jnp.integer)
        return self.writer.free_running(steps, carries, classes=classes, rngs=rngs)


class VectorToSequence(nnx.Module):
    """A stack of cells that writes a sequence of numbers, starting in a state made of a vector.

    [B, ...] to [B, steps, num_classes], as in the image captioning of Karpathy & Fei-Fei (2015).
    The arguments are those of `Recurrent`.
    """

    sequential = True

    def __init__(
        self,
        *,
        cell: CellName,
        hidden: PositiveInt,
        layers: PositiveInt,
        dropout: Decay,
        layer_norm: bool,
        forget_bias: float,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        options: dict[str, Any] = {"dropout": dropout, "layer_norm": layer_norm}
        options |= {"forget_bias": forget_bias, **init}
        stack = Stack(cell, num_classes, hidden, layers, **options)
        self.states = stack.layers[0][0].cell.states
        self.start = Dense(math.prod(input_shape), layers * self.states * hidden, **init)
        self.writer = Writer(stack, num_classes, **init)

    def __call__(
        self, x: jax.Array, *, steps: int | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Return the written sequence, [B, steps, num_classes], or one output, [B, num_classes].

        Raises:
          UserError: x is made of tokens.
        """
        if jnp.issubdtype(x.dtype, jnp.integer):
            raise UserError("vector_to_sequence reads numbers: of tokens use model=encoder_decoder")
        start = jnp.tanh(self.start(flatten(x)))
        pieces = iter(jnp.split(start, len(self.writer.stack.layers) * self.states, axis=-1))
        carries = [
            [tuple(next(pieces) for _ in range(self.states))] for _ in self.writer.stack.layers
        ]
        return self.writer.free_running(steps, carries, classes=False, rngs=rngs)
