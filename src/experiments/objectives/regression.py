"""Regression: the target is a number, several of them, or a sequence of them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.objectives.classification import Classification, Metrics, applied, full_precision
from experiments.objectives.metrics import Errors
from experiments.objectives.sequence import outputs_of
from experiments.types import Positive


class Regression(Classification):
    """Loss and errors of a model's numbers, for a batch's `target`, float [B, K] or [B, steps, K].

    Metrics besides `loss`: `squared_error` and `absolute_error`, means over the numbers of an
    example, the latter in the unit that the data give as `unit` [B] (1 where they do not); with a
    `tolerance` also `solved`, the share of examples of which every number is off by less
    (Hochreiter & Schmidhuber 1997, "Long short-term memory", section 5.4).

    Raises:
      UserError: the loss is one of a classification.
    """

    kind = "regression"
    monitor = ("loss", "min")

    def __init__(self, *, loss: Any, tolerance: Positive | None, num_classes: int):
        super().__init__(loss=loss, head=None, num_classes=num_classes)
        if self.takes != "outputs":
            raise UserError("the target is a number, no class: use loss=mse, mae or huber")
        self.tolerance = tolerance

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of an evaluation beside the values of each example."""
        return {"errors": Errors()}

    def __call__(
        self, model: nnx.Module, batch: dict, rngs: nnx.Rngs | None, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Return values per example, each [batch], and the outputs, of the target's shape."""
        target = batch["target"]
        if target.ndim == 3:
            outputs = outputs_of(model, batch, target.shape[1], rngs)
        else:
            outputs = applied(model, batch, rngs)
        outputs = full_precision(outputs)
        axes = tuple(range(1, target.ndim))
        loss = self.loss(self.loss_input(outputs), target)
        error = jnp.abs(outputs - target)
        unit = batch.get("unit", jnp.ones(target.shape[0]))
        unit = unit.reshape(target.shape[0], *[1] * (target.ndim - 1))
        values = {
            "loss": jnp.mean(loss.reshape(target.shape[0], -1), axis=1),
            "squared_error": jnp.mean(error**2, axis=axes),
            "absolute_error": jnp.mean(error * unit, axis=axes),
        }
        if self.tolerance is not None:
            values["solved"] = jnp.all(error < self.tolerance, axis=axes).astype(jnp.float32)
        return values, outputs

    def predictions(self, outputs: jax.Array) -> jax.Array:
        """Return the outputs themselves."""
        return outputs
