"""Generated problems: long memory, and the continuation of a wave.

Training examples are drawn on the device, new ones at every step. Each example of validation and
test is stored as a seed, so that these are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.dataset import Arrays, Spec, Splits
from experiments.data.sampling import count_of
from experiments.errors import UserError
from experiments.types import BatchSize, Limit, NonNegative, NonNegativeInt, PositiveInt

Example = dict[str, jax.Array]
BLANK = 0  # token of `Copy` where there is no symbol


@dataclass(frozen=True)
class Draw:
    """The pipeline that generates examples: new ones in training, else those of the seeds."""

    one: Callable[[jax.Array], Example]  # an example from a key

    def __call__(self, batch: Mapping[str, Any], key: jax.Array, *, train: bool) -> Example:
        """Return B stacked examples, from `seed` uint32 [B] or, in training, from `key`."""
        if train:
            keys = jax.random.split(key, len(batch["seed"]))
        else:
            keys = jax.vmap(jax.random.key)(batch["seed"])
        return jax.vmap(self.one)(keys)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The arguments and methods that all generated problems share.

    Args:
        examples: number per epoch of training; each is new.
        held_out: examples for validation, and again for test.
        limit: use only so many examples per epoch; or with a float this share; None
            uses all.
        batch_size, eval_batch_size: examples per step; -1 is all of them.
    """

    examples: PositiveInt
    held_out: PositiveInt
    limit: Limit
    batch_size: BatchSize
    eval_batch_size: PositiveInt | Literal[-1]

    @property
    def pipeline(self) -> Draw:
        """The part of the training step that generates the examples."""
        return Draw(self.one)

    def load(self) -> Splits:
        """Return the seeds of all examples."""
        seeds = np.arange(self.examples + 2 * self.held_out, dtype=np.uint32)
        test, validation, train = np.split(seeds, [self.held_out, 2 * self.held_out])
        return Splits(
            train=Arrays({"seed": train[: count_of(self.limit, self.examples)]}),
            validation=Arrays({"seed": validation}),
            test=Arrays({"seed": test}),
            class_names=(),
            fingerprint=repr(self),
        )

    def one(self, key: jax.Array) -> Example:
        """Generate an example from a key."""
        raise NotImplementedError

    def _spec(self, input_shape: tuple[int, ...], outputs: int) -> Spec:
        examples = min(count_of(self.limit, self.examples), self.examples)
        return Spec(input_shape, outputs, examples, {"seed": ((), "uint32")})


@dataclass(frozen=True, kw_only=True)
class Adding(Problem):
    """The adding problem: the sum of the two numbers of a long sequence that are marked.

    A step is a number in [0, 1] and a mark. One mark is in the first half, one in the second
    (Hochreiter & Schmidhuber 1997, section 5.4, in the form of Le et al. 2015). Predicting 1 for
    every example gives a mean squared error of 1/6.

    Args:
        length: steps of a sequence.
    """

    length: PositiveInt

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UserError(f"data.length={self.length}: two marks need 2 steps or more")

    @property
    def spec(self) -> Spec:
        return self._spec((self.length, 2), 1)

    def one(self, key: jax.Array) -> Example:
        """Generate `sequence` [length, 2] and `target` [1]."""
        values, *keys = jax.random.split(key, 3)
        half = self.length // 2
        number = jax.random.uniform(values, (self.length,))
        ends = ((0, half), (half, self.length))
        places = jnp.stack(
            [jax.random.randint(k, (), *end) for k, end in zip(keys, ends, strict=True)]
        )
        mark = jnp.zeros(self.length).at[places].set(1.0)
        return {"sequence": jnp.stack([number, mark], -1), "target": number[places].sum()[None]}


@dataclass(frozen=True, kw_only=True)
class Copy(Problem):
    """The copy problem: repeat a few symbols after a long delay.

    Tokens are 0 for a blank, 1 to `symbols`, and one more that asks for the answer. Only the
    repeated symbols count; guessing gives a loss of log(symbols).

    Args:
        symbols: number of different symbols.
        length: symbols to repeat.
        delay: steps between the last symbol and the token that asks for the answer.
        target: "aligned" with the input, one output per step; "answer": the symbols alone, for a
            model that generates a sequence.

    References:
        Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016.
    """

    symbols: PositiveInt
    length: PositiveInt
    delay: NonNegativeInt
    target: Literal["aligned", "answer"]

    @property
    def spec(self) -> Spec:
        steps = self.length + self.delay + 1 + (self.length if self.target == "aligned" else 0)
        return self._spec((steps, self.symbols + 2), self.symbols + 2)

    def one(self, key: jax.Array) -> Example:
        """Generate `tokens` [steps], and `target` and `weight` of [steps] or [length]."""
        symbols = jax.random.randint(key, (self.length,), 1, self.symbols + 1)
        wait = jnp.full(self.delay, BLANK)
        question = jnp.concatenate([symbols, wait, jnp.array([self.symbols + 1])])
        if self.target == "answer":
            return {"tokens": question, "target": symbols, "weight": jnp.ones(self.length)}
        blank = jnp.full(len(question), BLANK)
        return {
            "tokens": jnp.concatenate([question, jnp.full(self.length, BLANK)]),
            "target": jnp.concatenate([blank, symbols]),
            "weight": jnp.concatenate([jnp.zeros(len(question)), jnp.ones(self.length)]),
        }


@dataclass(frozen=True, kw_only=True)
class Sine(Problem):
    """The continuation of a noisy sine of unknown frequency, phase and amplitude.

    The frequency is uniform between 0.02 and 0.1 periods per step, the amplitude between 0.5 and 1.
    The target has no noise.

    Args:
        length: steps that are read.
        horizon: steps to predict.
        noise: standard deviation of the noise on the steps that are read.
        given: "window": the wave so far; "parameters": amplitude, frequency in units of 0.1 and
            phase in periods, for a model that generates a sequence from a vector.
        target: "vector": all values at once; "sequence": one after the other, for a model that
            generates a sequence.
    """

    length: PositiveInt
    horizon: PositiveInt
    noise: NonNegative
    given: Literal["window", "parameters"]
    target: Literal["vector", "sequence"]

    @property
    def spec(self) -> Spec:
        inputs = (3,) if self.given == "parameters" else (self.length, 1)
        return self._spec(inputs, self.horizon if self.target == "vector" else 1)

    def one(self, key: jax.Array) -> Example:
        """Generate `sequence` [length, 1] or [3], and `target` [horizon] or [horizon, 1]."""
        drawn, noise = jax.random.split(key)
        low, high = np.array([0.5, 0.02, 0.0]), np.array([1.0, 0.1, 1.0])
        amplitude, frequency, phase = jax.random.uniform(drawn, (3,), minval=low, maxval=high)
        time = np.arange(self.length + self.horizon)
        wave = amplitude * jnp.sin(2 * np.pi * (frequency * time + phase))
        if self.given == "parameters":
            read, wave = jnp.stack([amplitude, frequency * 10, phase]), wave[: self.horizon]
        else:
            noisy = wave + self.noise * jax.random.normal(noise, wave.shape)
            read, wave = noisy[: self.length, None], wave[self.length :]
        return {"sequence": read, "target": wave if self.target == "vector" else wave[:, None]}
