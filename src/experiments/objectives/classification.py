"""Classification: the target is a label, the model gives one output per class."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.data.dataset import model_input
from experiments.errors import UserError
from experiments.objectives.metrics import Calibration, PerClass, Ranking, top_k_accuracy
from experiments.types import Head

Metrics = dict[str, jax.Array]

TOP5_FROM = 10  # classes from which on it tells something to be among the best five

HEADS: dict[str, Callable] = {
    "identity": lambda outputs: outputs,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}
LOG_HEADS: dict[str, Callable] = {  # the logarithms of the heads, computed stably
    "identity": lambda outputs: outputs,
    "sigmoid": jax.nn.log_sigmoid,
    "softmax": jax.nn.log_softmax,
}


class Classification:
    """Loss and accuracy of a model's class scores.

    A batch has `label`, integers [batch] or a distribution [batch, num_classes], the input of the
    model (`image` [batch, ...], say), and of sequences that differ in length `lengths` [batch].

    Args:
      loss: a function of `experiments.objectives.losses`.
      head: the output head that turns the model's raw outputs into the argument of the loss;
        None: the one that goes with the loss.
      num_classes: number of the classes.

    Raises:
      UserError: the loss is an adversarial one, or does not go with the head.
    """

    kind = "classification"  # by which figures are chosen
    monitor = ("accuracy", "max")  # the metric that decides which epoch was best

    def __init__(self, *, loss: Any, head: Head | None, num_classes: int):
        function = getattr(loss, "func", loss)
        self.takes = getattr(function, "takes", "outputs")
        self.head = str(head or getattr(function, "head", "identity"))
        if self.takes == "scores":
            raise UserError(f"loss={function.__name__} is for adversarial models: model=gan, dcgan")
        if self.takes == "logits" and self.head not in ("identity", function.head):
            raise UserError(
                f"loss={function.__name__} contains the {function.head}, so objective.head={head} "
                f"does not go with it; use objective.head=null, or loss=mse for outputs of any head"
            )
        if self.takes == "logits":
            self.head = function.head
        self.nats = ("loss", "main_loss") if getattr(function, "nats", False) else ()
        self.loss = loss
        self.num_classes = num_classes

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of an evaluation beside the values of each example."""
        found: dict[str, Any] = {
            "per_class": PerClass(),
            "ranking": Ranking(self.num_classes),
            "calibration": Calibration(),
        }
        if self.num_classes >= TOP5_FROM:
            found["top5_accuracy"] = functools.partial(top_k_accuracy, k=5)
        return found

    def __call__(
        self, model: nnx.Module, batch: dict, rngs: nnx.Rngs | None, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Return values per example, each [batch], `loss` and `accuracy` (0 or 1), and the logits.

        Every objective gets the `epoch` of the training, in fractions, and None in an evaluation,
        which is of the whole task. A model that gives a tuple, as only in training, has auxiliary
        classifiers: the loss is that of the first entry plus `model.auxiliary_weight` times that of
        each other one. `main_loss` is then that of the first alone, to be compared with the loss of
        an evaluation.
        """
        outputs = applied(model, batch, rngs)
        first, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        logits = full_precision(first)
        if logits.ndim == 2 and logits.shape[1] != self.num_classes:
            raise UserError(
                f"the model gives {logits.shape[1]} scores; there are {self.num_classes} classes"
            )
        targets = targets_of(batch, self.num_classes)
        hit = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        loss = self.loss(self.loss_input(logits), targets)
        values = {"main_loss": loss} if auxiliary else {}
        for other in auxiliary:
            extra = self.loss(self.loss_input(full_precision(other)), targets)
            loss = loss + model.auxiliary_weight * extra  # type: ignore[attr-defined]
        return values | {"loss": loss, "accuracy": hit.astype(jnp.float32)}, logits

    def loss_input(self, logits: jax.Array) -> jax.Array:
        """Return the argument of the loss, of the kind that `losses` says it takes."""
        if self.takes == "logits":
            return logits
        heads = LOG_HEADS if self.takes == "log_probabilities" else HEADS
        return heads[self.head](logits)

    def average(self, outputs: jax.Array) -> jax.Array:
        """Return the outputs that predict the mean of several predictions.

        Args:
          outputs: of several views of each example, [views, batch, classes].

        Returns:
          [batch, classes]
        """
        outputs = full_precision(outputs)

        def log_mean(logarithms: jax.Array) -> jax.Array:
            return jax.nn.logsumexp(logarithms, axis=0) - jnp.log(len(outputs))

        if self.head == "softmax":
            return log_mean(jax.nn.log_softmax(outputs))
        if self.head == "sigmoid":
            positive, negative = jax.nn.log_sigmoid(outputs), jax.nn.log_sigmoid(-outputs)
            return log_mean(positive) - log_mean(negative)
        return outputs.mean(0)

    def predictions(self, logits: jax.Array) -> jax.Array:
        """Return class probabilities: by the head where it gives any, else by the softmax.

        Those of a sigmoid are of each class by itself, and need not sum to 1.
        """
        return jax.nn.sigmoid(logits) if self.head == "sigmoid" else jax.nn.softmax(logits)


def targets_of(batch: dict, num_classes: int) -> jax.Array:
    """Return one-hot (or mixed) targets [batch, num_classes]."""
    label = batch["label"]
    return label if label.ndim == 2 else jax.nn.one_hot(label, num_classes)


def applied(model: Any, batch: dict, rngs: nnx.Rngs | None, **options: Any) -> Any:
    """Return what a model gives for the inputs of a batch.

    One that takes no `rngs` holds its own random streams, as `nnx.Dropout(..., rngs=rngs)` does.
    """
    if "lengths" in batch:
        options["lengths"] = batch["lengths"]
    takes = inspect.signature(model).parameters.values()
    if any(one.name == "rngs" or one.kind is one.VAR_KEYWORD for one in takes):
        options["rngs"] = rngs
    return model(model_input(batch)[1], **options)


def full_precision(x: jax.Array) -> jax.Array:
    """Return `x` as float32 at least, as losses are not computed in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
