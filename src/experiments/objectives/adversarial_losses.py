"""Losses of adversarial networks: functions of the discriminator's scores of real and of generated
examples, both [batch], giving (the discriminator's loss, the generator's loss), both [batch].

Scores are logits or, for least squares and Wasserstein, plain numbers. `middle` is the score above
which the discriminator takes an example for real; None: halfway between the two means.
"""

from collections.abc import Callable
from typing import Any

import jax

from experiments.errors import UserError
from experiments.objectives import losses
from experiments.types import Fraction, NonNegative, Positive

Pair = tuple[jax.Array, jax.Array]


def adversarial(middle: float | None) -> Callable[[Callable], Callable]:
    """Notes on a loss that it is of this kind, and its `middle`."""

    def note(function: Callable) -> Callable:
        function.takes, function.head, function.middle = "scores", "identity", middle  # type: ignore[attr-defined]
        return function

    return note


@adversarial(middle=0.0)
def minimax(real: jax.Array, fake: jax.Array, *, label_smoothing: Fraction) -> Pair:
    """−log D(x) − log(1 − D(G(z))) against log(1 − D(G(z))) (Goodfellow et al. 2014, eq. 1).

    One-sided label smoothing: real examples have the target 1 − `label_smoothing` (Salimans et al.
    2016, section 3.4).
    """
    return _discriminator(real, fake, label_smoothing), -jax.nn.softplus(fake)


@adversarial(middle=0.0)
def non_saturating(real: jax.Array, fake: jax.Array, *, label_smoothing: Fraction) -> Pair:
    """As `minimax`, but the generator minimises −log D(G(z)) (ibid., section 3)."""
    return _discriminator(real, fake, label_smoothing), jax.nn.softplus(-fake)


@adversarial(middle=0.5)
def least_squares(real: jax.Array, fake: jax.Array, *, label_smoothing: Fraction) -> Pair:
    """½(D(x) − 1)² + ½D(G(z))² against ½(D(G(z)) − 1)² (Mao et al. 2017, eq. 9)."""
    wanted = 1 - label_smoothing
    return 0.5 * (real - wanted) ** 2 + 0.5 * fake**2, 0.5 * (fake - 1) ** 2


@adversarial(middle=0.0)
def hinge(real: jax.Array, fake: jax.Array, *, margin: Positive) -> Pair:
    """max(0, m − D(x)) + max(0, m + D(G(z))) against −D(G(z)) (Lim & Ye 2017)."""
    return jax.nn.relu(margin - real) + jax.nn.relu(margin + fake), -fake


@adversarial(middle=None)
def wasserstein_gp(real: jax.Array, fake: jax.Array, *, gradient_penalty: NonNegative) -> Pair:
    """D(G(z)) − D(x) against −D(G(z)) (Arjovsky et al. 2017).

    The objective adds `gradient_penalty` · (‖∇D‖ − 1)² at random places between a real and a
    generated example (Gulrajani et al. 2017).
    """
    return fake - real, -fake


def as_adversarial(loss: Any) -> tuple[Callable[..., Pair], dict[str, Any]]:
    """(function, its settings) of a loss out of the config; `loss=hinge` has a form of its own.

    Raises `UserError` for a loss that is not of this kind.
    """
    function = getattr(loss, "func", loss)
    if function is losses.hinge:
        function = hinge
    if getattr(function, "takes", None) != "scores":
        name = getattr(function, "__name__", "null")
        raise UserError(
            f"loss={name} does not go with this model: choose loss=non_saturating, minimax, "
            f"least_squares, hinge or wasserstein_gp"
        )
    return function, getattr(loss, "keywords", {})


def _discriminator(real: jax.Array, fake: jax.Array, label_smoothing: Any) -> jax.Array:
    """The cross-entropy of the logits, with targets 1 − ε and 0."""
    return jax.nn.softplus(real) - (1 - label_smoothing) * real + jax.nn.softplus(fake)
