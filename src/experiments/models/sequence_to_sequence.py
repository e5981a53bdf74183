"""Recurrent networks that write a sequence, one output after the other."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.core.initializers import Initializer
from experiments.errors import UserError
from experiments.models.layers import Dense, flatten
from experiments.models.reading import Reader, real_steps, steps_and_features
from experiments.models.recurrent import CellName, Stack
from experiments.ops.recurrence import Carry
from experiments.types import Decay, PositiveInt

Carries = list[list[Carry]]


class Writer(nnx.Module):
    """Writes from a state; every step reads the output before it, the first one zeros."""

    def __init__(self, stack: Stack, outputs: int, *, kernel_init: Initializer, rngs: nnx.Rngs):
        self.stack = stack  # reads as many features as there are outputs
        self.output = Dense(stack.width, outputs, kernel_init=kernel_init, rngs=rngs)
        self.outputs = outputs

    def repeating(
        self, targets: jax.Array, carries: Carries, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """The outputs [B, T, outputs] of a writer that is told each time what was right.

        `targets` are classes, int [B, T] (teacher forcing, Williams & Zipser 1989).
        """
        told = jax.nn.one_hot(targets, self.outputs, dtype=self.output.kernel.dtype)
        told = jnp.concatenate([jnp.zeros_like(told[:, :1]), told[:, :-1]], axis=1)
        states, _ = self.stack(told, carries, rngs=rngs)
        return self.output(states)

    def alone(
        self, steps: int, carries: Carries, *, classes: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """The outputs [B, steps, outputs] of a writer that reads its own.

        Of `classes` it reads the most probable one, of numbers the numbers.
        """
        training = not self.stack.dropout.deterministic
        key = rngs.dropout() if training and rngs is not None else None
        batch = carries[0][0][0].shape[0]

        def step(state, index):
            last, carries = state
            own = None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, index))
            hidden, carries = self.stack(last[:, None], carries, rngs=own)
            output = self.output(hidden[:, 0])
            said = output
            if classes:
                said = jax.nn.one_hot(jnp.argmax(output, -1), self.outputs, dtype=output.dtype)
            return (said, carries), output

        nothing = jnp.zeros((batch, self.outputs), self.output.kernel.dtype)
        _, outputs = jax.lax.scan(step, (nothing, carries), jnp.arange(steps))
        return jnp.swapaxes(outputs, 0, 1)


class EncoderDecoder(nnx.Module):
    """Reads a sequence, then writes another of any length (Sutskever et al. 2014).

    The state in which one stack of cells ends is the one in which the other starts. What is read is
    as for `experiments.models.recurrent.Recurrent`; of tokens the outputs are classes, of numbers
    numbers. The arguments are those of `Recurrent`.
    """

    sequential = True
    writes = True  # may be told the right outputs before

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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        settings: dict[str, Any] = {
            "dropout": dropout,
            "layer_norm": layer_norm,
            "forget_bias": forget_bias,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        _, features = steps_and_features(input_shape)
        self.reader = Reader(features, embedding, kernel_init=kernel_init, rngs=rngs)
        self.encoder = Stack(cell, embedding or features, hidden, layers, **settings)
        decoder = Stack(cell, num_classes, hidden, layers, **settings)
        self.writer = Writer(decoder, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        *,
        steps: int | None = None,
        targets: jax.Array | None = None,
        lengths: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """The sequence written, [B, steps, num_classes].

        Without `steps` it is one output, [B, num_classes]. `targets`, int [B, steps], are read in
        place of the outputs; `lengths`, int [B], are the real steps of each sequence in x.
        """
        inputs = self.reader(x)
        batch, length = inputs.shape[:2]
        start = self.encoder.start(batch, self.writer.output.kernel.dtype)
        _, carries = self.encoder(inputs, start, real_steps(length, lengths), rngs)
        if targets is not None:
            return self.writer.repeating(targets, carries, rngs)
        classes = jnp.issubdtype(x.dtype, jnp.integer)
        written = self.writer.alone(steps or 1, carries, classes=classes, rngs=rngs)
        return written if steps is not None else written[:, 0]


class VectorToSequence(nnx.Module):
    """Writes a sequence of numbers from a vector, which sets the state that it starts in.

    [B, ...] to [B, steps, num_classes] (the image captioning of Karpathy & Fei-Fei 2015, without
    the image). The arguments are those of `Recurrent`.
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
        kernel_init: Initializer,
        rngs: nnx.Rngs,
    ):
        stack = Stack(
            cell,
            num_classes,
            hidden,
            layers,
            dropout=dropout,
            layer_norm=layer_norm,
            forget_bias=forget_bias,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        features, self.states = math.prod(input_shape), stack.layers[0][0].cell.states
        size = layers * self.states * hidden
        self.start = Dense(features, size, kernel_init=kernel_init, rngs=rngs)
        self.writer = Writer(stack, num_classes, kernel_init=kernel_init, rngs=rngs)

    def __call__(
        self, x: jax.Array, *, steps: int | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """The sequence written; without `steps` one output [B, num_classes].

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
        written = self.writer.alone(steps or 1, carries, classes=False, rngs=rngs)
        return written if steps is not None else written[:, 0]
