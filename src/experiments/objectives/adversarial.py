"""Adversarial training: a generator against a discriminator, both in one step."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import BatchNorm
from experiments.objectives.adversarial_losses import as_adversarial
from experiments.objectives.autoencoding import image_of
from experiments.objectives.classification import Metrics, full_precision
from experiments.objectives.variational import class_of
from experiments.types import PositiveInt


class Adversarial:
    """Two losses as one gradient tree: each part sees the other one as a constant.

    Args:
      loss: one of `experiments.objectives.adversarial_losses`.
      discriminator_steps: steps of the discriminator for each of the generator.
      classifier: run folder of a classifier of the same data, by which samples are judged
        (`experiments.viz.judge`), or None.
    """

    monitor = ("loss", "last")  # the losses of the two do not say how good the samples are
    gallery = "experiments.viz.gallery_adversarial"
    gallery_during = True
    pixels = (-1.0, 1.0)

    def __init__(
        self,
        *,
        loss: Any,
        discriminator_steps: PositiveInt,
        classifier: str | None,
        num_classes: int,
    ):
        self.loss, self.settings = as_adversarial(loss)
        self.update_every = {"generator": discriminator_steps} if discriminator_steps > 1 else {}
        self.classifier = classifier
        self.num_classes = num_classes

    def __call__(
        self, model: Any, batch: dict, rngs: nnx.Rngs, epoch: Any
    ) -> tuple[Metrics, jax.Array]:
        """Per-example values, and generated images [batch, H, W, C].

        Values: `discriminator_loss`, `generator_loss` and their sum `loss`; `real_accuracy` and
        `fake_accuracy`, whether the discriminator took the example for what it is;
        `energy_distance` between the pixels of the batch and of as many generated images, which is
        0 if both have one distribution and shows a collapse at once.
        """
        real = image_of(batch)
        condition = class_of(batch, self.num_classes) if model.conditional else None
        z = jax.random.normal(rngs.sample(), (real.shape[0], model.latents)).astype(real.dtype)
        fake = model.generate(z, condition)

        opponent = constant_copy(model)  # before the discriminator's own statistics move on
        on_real = self.score(model, real, condition)
        on_fake = self.score(model, jax.lax.stop_gradient(fake), condition)
        discriminator_loss, _ = self.loss(on_real, on_fake, **self.settings)
        if "gradient_penalty" in self.settings:
            discriminator_loss += self.penalty(model, real, fake, condition, rngs.sample())
        as_seen = self.score(opponent, fake, condition)
        _, generator_loss = self.loss(jax.lax.stop_gradient(on_real), as_seen, **self.settings)

        counted = batch.get("mask", jnp.ones(real.shape[0]))  # padding is no part of the data
        middle = self.loss.middle  # type: ignore[attr-defined]
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
        return values, fake

    def score(self, model: Any, images: jax.Array, condition: jax.Array | None) -> jax.Array:
        """The discriminator's scores [batch]."""
        return full_precision(model.discriminate(images, condition))

    def penalty(
        self,
        model: Any,
        real: jax.Array,
        fake: jax.Array,
        condition: jax.Array | None,
        key: jax.Array,
    ) -> jax.Array:
        """`gradient_penalty` · (‖∇D‖ − 1)² [batch] between real and generated images."""
        if any(isinstance(m, BatchNorm) for _, m in nnx.iter_modules(model.discriminator)):
            raise UserError(
                "loss=wasserstein_gp: the penalty is an example's own, and batch normalisation "
                "mixes them; use model.discriminator_norm=none"
            )
        graph, state = nnx.split(model)
        share = jax.random.uniform(key, (real.shape[0], 1, 1, 1)).astype(real.dtype)
        between = share * real + (1 - share) * jax.lax.stop_gradient(fake)

        def total(images: jax.Array) -> jax.Array:
            return jnp.sum(self.score(nnx.merge(graph, state), images, condition))

        gradient = full_precision(jax.grad(total)(between))
        norm = jnp.sqrt(jnp.sum(gradient.reshape(real.shape[0], -1) ** 2, axis=-1) + 1e-12)
        return self.settings["gradient_penalty"] * (norm - 1) ** 2

    def predictions(self, fake: jax.Array) -> jax.Array:
        """The generated images, in 0..1."""
        return (fake + 1) / 2


def energy_distance(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
    """2 E|x − y| − E|x − x'| − E|y − y'| (Székely & Rizzo 2013), unbiased, the same at each of [n].

    Args:
      x, y: two samples [n, ...].
      weight: of each row [n], 1 or 0 for one that does not count.
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


def constant_copy(model: nnx.Module) -> nnx.Module:
    """The same model, through which gradients flow to its inputs but not to its parameters."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))
