"""A class for every step of a sequence: labelling, and the language model as its special case."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.objectives.classification import (
    Classification,
    Metrics,
    applied,
    full_precision,
)


def outputs_of(model: Any, batch: dict, steps: int, rngs: nnx.Rngs | None, **extra: Any) -> Any:
    """Return a model's outputs [B, steps, num_classes] for a batch.

    Raises:
      UserError: the model gives one output for a whole sequence.
    """
    if not getattr(model, "sequential", False):
        raise UserError(
            f"{type(model).__name__} gives one output for a whole sequence, but these data want "
            f"one per step: use model=lstm, gru, rnn, peephole_lstm or encoder_decoder"
        )
    known = {"restart": batch["restart"]} if "restart" in batch else {}
    return applied(model, batch, rngs, steps=steps, **known, **extra)


class Labelling(Classification):
    """Loss and accuracy of a class for every step: `target` int [B, steps].

    A batch may have `weight` [B, steps], how much each step counts (all the same where there is
    none). An example's loss is the weighted mean of `loss` over its steps. Metrics: `accuracy`, of
    steps, and `solved`, the share of sequences of which every step that counts is right. A model
    that generates step by step reads the targets for the loss, and its own outputs for the metrics.
    """

    kind = "labelling"

    def __call__(
        self, model: nnx.Module, batch: dict, rngs: nnx.Rngs | None, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Return values per example, each [batch], and the logits [B, steps, num_classes]."""
        target = batch["target"]
        weight = batch.get("weight", jnp.ones(target.shape, jnp.float32))
        weight = weight / jnp.sum(weight, axis=1, keepdims=True)
        steps = target.shape[1]
        writes = getattr(model, "writes", False)
        given = {"targets": target} if writes else {}
        logits = full_precision(outputs_of(model, batch, steps, rngs, **given))
        loss = self.loss(self.loss_input(logits), jax.nn.one_hot(target, self.num_classes))
        seen = full_precision(outputs_of(model, batch, steps, rngs)) if writes else logits
        hit = jnp.argmax(seen, axis=-1) == target
        values = {
            "loss": jnp.sum(weight * loss, axis=1),
            "accuracy": jnp.sum(weight * hit, axis=1),
            "solved": jnp.all(hit | (weight == 0), axis=1).astype(jnp.float32),
        }
        return values, seen

    @property
    def metrics(self) -> dict[str, Any]:
        """No metrics beside the values of each example."""
        return {}

    def predictions(self, logits: jax.Array) -> jax.Array:
        """Return the predicted classes, int32 [B, steps]."""
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


class Language(Labelling):
    """Prediction of the next character from those before it.

    Metrics: `loss` in nats per character, `bits_per_character` of the predicted distribution, and
    `accuracy`.
    """

    kind = "language"
    monitor = ("loss", "min")

    def __call__(
        self, model: nnx.Module, batch: dict, rngs: nnx.Rngs | None, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Return values per example, each [batch], and the logits [B, steps, num_classes].

        Raises:
          UserError: the model reads the characters that it is to predict.
        """
        if not hasattr(model, "advance") or getattr(model, "bidirectional", False):
            raise UserError(
                "a language model reads from left to right and gives an output per step: use "
                "model=lstm, gru, rnn or peephole_lstm with model.bidirectional=false"
            )
        values, logits = super().__call__(model, batch, rngs, epoch)
        target = batch["target"][..., None]
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
        del values["solved"]
        return values | {"bits_per_character": jnp.mean(nats, axis=1) / math.log(2)}, logits

    def predictions(self, logits: jax.Array) -> jax.Array:
        """Return the log-probabilities of the next character, [B, steps, num_classes]."""
        return jax.nn.log_softmax(logits)
