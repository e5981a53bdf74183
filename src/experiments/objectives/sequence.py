"""A class for every step of a sequence: labelling, and the language model as its special case."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.data.dataset import model_input
from experiments.errors import UserError
from experiments.objectives.classification import Classification, Metrics, full_precision


def outputs_of(model: Any, batch: dict, steps: int, rngs: nnx.Rngs | None, **extra: Any) -> Any:
    """A model's outputs [B, steps, num_classes] for a batch.

    Raises:
      UserError: the model gives one output for a whole sequence.
    """
    if not getattr(model, "sequential", False):
        raise UserError(
            f"{type(model).__name__} gives one output for a whole sequence, but these data want "
            f"one a step: use model=lstm, gru, rnn, peephole_lstm or encoder_decoder"
        )
    known = {name: batch[name] for name in ("lengths", "restart") if name in batch}
    return model(model_input(batch)[1], steps=steps, rngs=rngs, **known, **extra)


class Labelling(Classification):
    """The target of each step is a class: `target` int [B, steps].

    A batch may have `weight` [B, steps]: how much each step counts (all the same where there is
    none). An example's loss is the mean of `loss` over its steps. Metrics: `accuracy`, of steps,
    and `solved`, the share of sequences of which every step that counts is right. A model that
    writes step by step reads its own outputs for the two, and the targets for the loss.
    """

    gallery = "experiments.viz.gallery_labelling"

    def __call__(
        self, model: nnx.Module, batch: dict, rngs: nnx.Rngs | None, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Per-example values, each [batch], and the logits [B, steps, num_classes]."""
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

    def predictions(self, logits: jax.Array) -> jax.Array:
        """The predicted classes, int32 [B, steps]."""
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


class Language(Labelling):
    """The next character from those before it.

    Metrics: `loss` in nats a character, `bits_per_character` of the predicted distribution, and
    `accuracy`.
    """

    monitor = ("loss", "min")
    gallery = "experiments.viz.gallery_language"
    gallery_during = True

    def __call__(
        self, model: nnx.Module, batch: dict, rngs: nnx.Rngs | None, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Per-example values, each [batch], and the logits [B, steps, num_classes].

        Raises:
          UserError: the model reads what it is to predict.
        """
        if not hasattr(model, "advance") or getattr(model, "bidirectional", False):
            raise UserError(
                "a language model reads from left to right and gives an output a step: use "
                "model=lstm, gru, rnn or peephole_lstm with model.bidirectional=false"
            )
        values, logits = super().__call__(model, batch, rngs, epoch)
        target = batch["target"][..., None]
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
        del values["solved"]
        return values | {"bits_per_character": jnp.mean(nats, axis=1) / math.log(2)}, logits

    def predictions(self, logits: jax.Array) -> jax.Array:
        """The logarithms of the probabilities of the next character, [B, steps, num_classes]."""
        return jax.nn.log_softmax(logits)
