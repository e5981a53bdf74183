"""Fully connected networks: the perceptron and the multilayer perceptron."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, Unpack

import jax
from flax import nnx

from experiments.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    Dense,
    Dropout,
    GroupNorm,
    Init,
    flatten,
)
from experiments.types import Activation, Decay, PositiveInt


class Perceptron(nnx.Module):
    """One layer of threshold units, one per class (Rosenblatt 1958).

    [batch, ...] to [batch, num_classes]. With `loss=mse optim=sgd` a step is Rosenblatt's rule
    w ← w + η (y − o) x.
    """

    def __init__(
        self,
        *,
        activation: Activation,
        input_shape: tuple[int, ...],
        num_classes: int,
        **init: Unpack[Init],
    ):
        self.output = Dense(math.prod(input_shape), num_classes, **init)
        self.activation = activation

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return ACTIVATIONS[self.activation](self.output(flatten(x)))


class MLP(nnx.Module):
    """Dense layers; after each hidden one normalisation, an activation and dropout.

    [batch, ...] to logits [batch, num_classes]. `hidden=[]` is multinomial logistic regression.
    Normalisation comes before the activation (Ioffe & Szegedy 2015, section 3.2; Ba et al. 2016).
    """

    def __init__(
        self,
        *,
        hidden: list[PositiveInt],
        activation: Activation,
        dropout: Decay,
        norm: Literal["none", "batch", "layer"] = "none",
        input_shape: Sequence[int],
        num_classes: int,
        **init: Unpack[Init],
    ):
        sizes = [math.prod(input_shape), *hidden]
        self.hidden = nnx.List(Dense(*pair, **init) for pair in itertools.pairwise(sizes))
        kind = {"none": None, "batch": BatchNorm, "layer": GroupNorm}[norm]
        self.norms = nnx.List([] if kind is None else map(kind, sizes[1:]))
        self.output = Dense(sizes[-1], num_classes, **init)
        self.dropout = Dropout(dropout)
        self.activation = activation

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = flatten(x)
        for index, layer in enumerate(self.hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = self.dropout(ACTIVATIONS[self.activation](x), rngs=rngs)
        return self.output(x)
