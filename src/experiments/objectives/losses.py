"""Losses: functions of (outputs, targets), both [batch, features], giving one value per example.

The attribute `takes` says what a loss is a function of. `logits`: the link function is part of the
loss, computed stably from the model's raw outputs. `log_probabilities`: the logarithm of the output
head. `outputs`: the output head itself. The attribute `head` is the output head that goes with it
if the config names none, and `nats` is true of the negative of a log-likelihood. Targets of a
classification are one-hot vectors (or a mixture of them).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.errors import UserError
from experiments.types import Fraction, NonNegative, Positive

ClassWeights = Literal["balanced"] | list[NonNegative] | None


def loss(takes: str, head: str, **others: Any) -> Callable[[Callable], Callable]:
    """Give a loss the attributes `takes`, `head` and perhaps `others`."""

    def mark(function: Callable) -> Callable:
        vars(function).update(takes=takes, head=head, **others)
        return function

    return mark


def weighted(values: jax.Array, targets: jax.Array, class_weights: Any) -> jax.Array:
    """Return the values of examples, each times the weight of its class.

    Args:
      class_weights: numbers [classes], which may be traced; None weighs all classes alike.

    Raises:
      UserError: there are more or fewer classes.
    """
    if class_weights is None:
        return values
    if len(class_weights) != targets.shape[-1]:
        raise UserError(
            f"loss.class_weights has {len(class_weights)} numbers, but there are "
            f"{targets.shape[-1]} classes: give one for each"
        )
    weights = jnp.stack([jnp.asarray(weight, values.dtype) for weight in class_weights])
    return values * jnp.sum(targets * weights, axis=-1)


def with_class_weights(
    config: Mapping[str, Any], counts: Callable[[], Sequence[int]]
) -> Mapping[str, Any]:
    """Return a config with class weights as floats, which can be traced.

    `balanced` is the share that a class would have if all had the same, over the share that it has.
    A class without an example has the weight 1, which nothing is multiplied by in training.

    Args:
      counts: gives the number of training examples of each class.
    """
    loss = config.get("loss") or {}
    weights = loss.get("class_weights")
    if weights is None:
        return config
    if weights == "balanced":
        found = counts()
        present = [count for count in found if count]
        equal = sum(present) / len(present)
        weights = [equal / count if count else 1 for count in found]
    return {**config, "loss": {**loss, "class_weights": [float(weight) for weight in weights]}}


@loss(takes="outputs", head="identity")
def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return ½‖y − o‖², the halved squared error, summed over the features."""
    return 0.5 * jnp.sum((targets - outputs) ** 2, axis=-1)


@loss(takes="outputs", head="identity")
def mae(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return ‖y − o‖₁, the absolute error, summed over the features."""
    return jnp.sum(jnp.abs(targets - outputs), axis=-1)


@loss(takes="outputs", head="identity")
def huber(outputs: jax.Array, targets: jax.Array, *, delta: Positive) -> jax.Array:
    """Return ½r² for |r| ≤ δ and δ(|r| − ½δ) beyond, summed over the features (Huber 1964)."""
    r = jnp.abs(targets - outputs)
    return jnp.sum(jnp.where(r <= delta, 0.5 * r**2, delta * (r - 0.5 * delta)), axis=-1)


@loss(takes="logits", head="sigmoid", nats=True)
def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return −Σ y log σ(z) + (1 − y) log(1 − σ(z)), summed over the features."""
    return jnp.sum(jax.nn.softplus(logits) - targets * logits, axis=-1)


@loss(takes="logits", head="softmax", nats=True)
def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    label_smoothing: Fraction,
    class_weights: ClassWeights = None,
) -> jax.Array:
    """Return −Σ q log softmax(z) with q = (1 − ε) y + ε/C (Szegedy et al. 2016, section 7)."""
    smooth = (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
    values = -jnp.sum(smooth * jax.nn.log_softmax(logits), axis=-1)
    return weighted(values, targets, class_weights)


@loss(takes="logits", head="softmax")
def focal(
    logits: jax.Array, targets: jax.Array, *, gamma: NonNegative, class_weights: ClassWeights = None
) -> jax.Array:
    """Return −Σ y (1 − p)^γ log p with p = softmax(z), the focal loss (Lin et al. 2017)."""
    log_p = jax.nn.log_softmax(logits)
    rest = jnp.maximum(-jnp.expm1(log_p), 1e-12)  # 1 − p; a power of 0 may have no gradient
    values = -jnp.sum(targets * rest**gamma * log_p, axis=-1)
    return weighted(values, targets, class_weights)


@loss(takes="log_probabilities", head="softmax", nats=True)
def nll(
    log_probabilities: jax.Array, targets: jax.Array, *, class_weights: ClassWeights = None
) -> jax.Array:
    """Return −Σ y log p, the negative log-likelihood of given log-probabilities."""
    return weighted(-jnp.sum(targets * log_probabilities, axis=-1), targets, class_weights)


@loss(takes="outputs", head="identity")
def hinge(outputs: jax.Array, targets: jax.Array, *, margin: Positive) -> jax.Array:
    """Return Σ_{j≠y} max(0, margin − o_y + o_j), the multiclass hinge (Weston & Watkins 1999)."""
    correct = jnp.sum(targets * outputs, axis=-1, keepdims=True)
    return jnp.sum((1 - targets) * jax.nn.relu(margin - correct + outputs), axis=-1)
