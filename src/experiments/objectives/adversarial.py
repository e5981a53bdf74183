"""Adversarial training: a generator against a discriminator, both in one step.

Its losses are functions of the discriminator's scores of real and of generated examples, both
[batch], and give (the discriminator's loss, the generator's loss), both [batch]. Scores are logits
or, for least squares and Wasserstein, plain numbers. A loss has an attribute `middle`: the score
above which the discriminator takes an example for real; None: halfway between the two means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.objectives import losses
from experiments.objectives.autoencoding import input_of, is_image
from experiments.objectives.classification import Metrics, full_precision
from experiments.objectives.variational import class_of
from experiments.types import Fraction, NonNegative, Positive, PositiveInt

Pair = tuple[jax.Array, jax.Array]


@losses.loss(takes="scores", head="identity", middle=0.0)
def minimax(real: jax.Array, fake: jax.Array, *, label_smoothing: Fraction) -> Pair:
    """Return −log D(x) − log(1 − D(G(z))) and log(1 − D(G(z))).

    Real examples have the target 1 − `label_smoothing`, generated ones 0 (one-sided smoothing).

    References:
      Goodfellow et al. 2014, "Generative adversarial nets", eq. 1; Salimans et al. 2016, "Improved
      techniques for training GANs", section 3.4.
    """
    return _discriminator(real, fake, label_smoothing), -jax.nn.softplus(fake)


@losses.loss(takes="scores", head="identity", middle=0.0)
def non_saturating(real: jax.Array, fake: jax.Array, *, label_smoothing: Fraction) -> Pair:
    """Return `minimax`'s losses, but −log D(G(z)) of the generator (Goodfellow 2014, section 3)."""
    return _discriminator(real, fake, label_smoothing), jax.nn.softplus(-fake)


@losses.loss(takes="scores", head="identity", middle=0.5)
def least_squares(real: jax.Array, fake: jax.Array, *, label_smoothing: Fraction) -> Pair:
    """Return ½(D(x) − 1)² + ½D(G(z))² and ½(D(G(z)) − 1)² (Mao et al. 2017, eq. 9)."""
    wanted = 1 - label_smoothing
    return 0.5 * (real - wanted) ** 2 + 0.5 * fake**2, 0.5 * (fake - 1) ** 2


@losses.loss(takes="scores", head="identity", middle=0.0)
def hinge(real: jax.Array, fake: jax.Array, *, margin: Positive) -> Pair:
    """Return max(0, m − D(x)) + max(0, m + D(G(z))) and −D(G(z)) (Lim & Ye 2017)."""
    return jax.nn.relu(margin - real) + jax.nn.relu(margin + fake), -fake


@losses.loss(takes="scores", head="identity", middle=None)
def wasserstein_gp(real: jax.Array, fake: jax.Array, *, gradient_penalty: NonNegative) -> Pair:
    """Return D(G(z)) − D(x) and −D(G(z)).

    `Adversarial` adds `gradient_penalty` · (‖∇D‖ − 1)² at random points between a real and a
    generated example.

    References:
      Arjovsky et al. 2017, "Wasserstein GAN"; Gulrajani et al. 2017, "Improved training of
      Wasserstein GANs".
    """
    return fake - real, -fake


def as_adversarial(loss: Any) -> tuple[Callable[..., Pair], dict[str, Any]]:
    """Return (function, its settings) of a loss as the config builds it.

    `loss=hinge` stands for the adversarial hinge.

    Raises:
      UserError: the loss is no adversarial one.
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
    """Return the cross-entropy of the logits for targets 1 − ε and 0."""
    return jax.nn.softplus(real) - (1 - label_smoothing) * real + jax.nn.softplus(fake)


@dataclass(kw_only=True, eq=False)
class Adversarial:
    """The objective of a generator and a discriminator: two losses as one gradient tree.

    Each of the two losses takes the other part as a constant.

    Args:
      loss: one of this module's.
      discriminator_steps: steps of the discriminator for each of the generator.
      classifier: run folder of a classifier of the same data that judges samples, or None.
    """

    loss: Any
    discriminator_steps: PositiveInt
    classifier: str | None
    num_classes: int

    kind = "adversarial"
    monitor = ("loss", "last")  # the losses of the two do not say how good the samples are
    pixels = (-1.0, 1.0)

    def __post_init__(self) -> None:
        self.loss, self.settings = as_adversarial(self.loss)
        steps = self.discriminator_steps
        self.update_every = {"generator": steps} if steps > 1 else {}

    def __call__(
        self, model: Any, batch: dict, rngs: nnx.Rngs, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Return values per example, each [batch], and generated images [batch, H, W, C] in 0..1.

        Vectors count as images of one row, of any range.

        Values: `discriminator_loss`, `generator_loss` and their sum `loss`; `real_accuracy` and
        `fake_accuracy`, 1 where the discriminator took the example for what it is;
        `energy_distance` between the pixels of the batch and of as many generated images, which is
        0 if both have one distribution and shows a collapse at once.
        """
        real = input_of(batch)
        condition = class_of(batch, self.num_classes) if model.conditional else None

        def score(model: Any, images: jax.Array) -> jax.Array:  # the discriminator's, [batch]
            return full_precision(model.discriminator(images, condition))

        z = jax.random.normal(rngs.sample(), (real.shape[0], model.latents)).astype(real.dtype)
        fake = model.generator(z, condition)

        # the same model with constant parameters, before the discriminator's statistics move on
        graph, variables = nnx.split(model)
        opponent = nnx.merge(graph, jax.lax.stop_gradient(variables))
        on_real = score(model, real)
        on_fake = score(model, jax.lax.stop_gradient(fake))
        discriminator_loss, _ = self.loss(on_real, on_fake, **self.settings)
        if "gradient_penalty" in self.settings:
            discriminator_loss += self.penalty(model, score, real, fake, rngs.sample())
        as_seen = score(opponent, fake)
        _, generator_loss = self.loss(jax.lax.stop_gradient(on_real), as_seen, **self.settings)

        counted = batch.get("mask", jnp.ones(real.shape[0]))  # 0 for padded examples
        middle = self.loss.middle
        if middle is None:
            middle = 0.5 * (jnp.mean(on_real) + jnp.mean(on_fake))
        values = {
            "loss": discriminator_loss + generator_loss,
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "real_accuracy": (on_real > middle).astype(jnp.float32),
            "fake_accuracy": (on_fake < middle).astype(jnp.float32),
            "energy_distance": energy_distance(real, jax.lax.stop_gradient(fake), counted),
        }
        return values, (fake + 1) / 2 if is_image(fake) else fake

    def penalty(
        self, model: Any, score: Callable, real: jax.Array, fake: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Return `gradient_penalty` · (‖∇D‖ − 1)² [batch] between real and generated images.

        Raises:
          UserError: the discriminator has batch normalisation.
        """
        modules = [module for _, module in nnx.iter_modules(model.discriminator)]
        if any(isinstance(getattr(m, "mean", None), nnx.BatchStat) for m in modules):
            raise UserError(
                "loss=wasserstein_gp: the penalty is an example's own, and batch normalisation "
                "mixes them; use model.discriminator_norm=none"
            )
        graph, state = nnx.split(model)
        share = jax.random.uniform(key, (real.shape[0], 1, 1, 1)).astype(real.dtype)
        between = share * real + (1 - share) * jax.lax.stop_gradient(fake)

        def total(images: jax.Array) -> jax.Array:
            return jnp.sum(score(nnx.merge(graph, state), images))

        gradient = full_precision(jax.grad(total)(between))
        norm = jnp.sqrt(jnp.sum(gradient.reshape(real.shape[0], -1) ** 2, axis=-1) + 1e-12)
        return self.settings["gradient_penalty"] * (norm - 1) ** 2

    def generated(self, model: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        """Return examples [n, H, W, C] of noise, images in 0..1.

        A conditional model reads `labels` [n].
        """
        condition = class_of({"label": labels}, self.num_classes) if model.conditional else None
        fake = model.generator(z, condition)
        return (fake + 1) / 2 if is_image(fake) else fake


def energy_distance(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """Return 2 E|x − y| − E|x − x'| − E|y − y'|, unbiased, repeated for each row: [n].

    Args:
      x, y: two samples [n, ...].
      weight: of each row [n], 1, or 0 for one that does not count.

    References:
      Székely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """
    x, y = (full_precision(a).reshape(a.shape[0], -1) for a in (x, y))
    pairs = weight[:, None] * weight[None, :]
    others = pairs * (1 - jnp.eye(len(weight)))

    def mean_distance(a: jax.Array, b: jax.Array, counted: jax.Array) -> jax.Array:
        squares = jnp.sum(a * a, -1)[:, None] + jnp.sum(b * b, -1) - 2 * a @ b.T
        return jnp.sum(jnp.sqrt(jnp.maximum(squares, 0)) * counted) / jnp.maximum(counted.sum(), 1)

    between = mean_distance(x, y, pairs)
    within = mean_distance(x, x, others) + mean_distance(y, y, others)
    return jnp.broadcast_to(2 * between - within, weight.shape)
