"""Autoencoding: the target is the input itself, perhaps from a spoilt copy of it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.models.layers import flatten
from experiments.objectives.classification import HEADS, Classification, Metrics, full_precision
from experiments.types import Decay, Fraction, Head, NonNegative, NonNegativeInt


class Autoencoding:
    """Reconstruction of images in 0..1, the loss being summed over the pixels.

    Args:
      loss: mse, binary_cross_entropy or another one of `experiments.objectives.losses`.
      head: of the output (None: the one that goes with the loss).
      noise: standard deviation of Gaussian noise on the input; masking: share of its pixels that
        are set to 0 (denoising, Vincent et al. 2008). Also in evaluation.
      kl_weight: of Σ KL(ρ ‖ mean activation) over the units of the code, which lie in 0..1;
        kl_target: ρ (Ng 2011, sparse autoencoder). l1_weight: of Σ |code|.
      contraction: weight of ‖∂code/∂input‖² (Rifai et al. 2011), estimated without bias from the
        gradient along one random direction of the code.
      epochs_a_layer: train one layer after the other, each with its own layer of the decoder on
        what the layers below make of the input, and then all of them together (Bengio et al.
        2007); 0: all together from the start.
    """

    monitor = ("loss", "min")
    gallery = "experiments.viz.gallery_autoencoding"
    gallery_during = True
    pixels = (0.0, 1.0)

    def __init__(
        self,
        *,
        loss: Any,
        head: Head | None,
        noise: NonNegative,
        masking: Decay,
        kl_weight: NonNegative,
        kl_target: Fraction,
        l1_weight: NonNegative,
        contraction: NonNegative,
        epochs_a_layer: NonNegativeInt,
        num_classes: int,
    ):
        self.output = Classification(loss=loss, head=head, num_classes=num_classes)
        self.loss = loss
        self.noise, self.masking = noise, masking
        self.kl_weight, self.kl_target, self.l1_weight = kl_weight, kl_target, l1_weight
        self.contraction = contraction
        self.epochs_a_layer = epochs_a_layer

    def __call__(
        self, model: Any, batch: dict, rngs: nnx.Rngs, epoch: Any
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        """Per-example values and `clean`, `seen` and `reconstruction` [batch, H, W, C].

        Values: `loss`, all in all; `reconstruction`, the data term; `squared_error`, its mean over
        the pixels; `activation`, the mean of the code.
        """
        target = image_of(batch)
        seen = self.spoilt(target, rngs)
        code = model.encode(seen)
        outputs = full_precision(model.decode(code).reshape(target.shape[0], -1))
        data_term = self.loss(self.output.loss_input(outputs), flatten(target))
        shown = HEADS[self.shown_head](outputs)
        code = full_precision(code)
        loss = data_term + self.penalty(model, seen, code, rngs)
        if self.epochs_a_layer:
            loss = self.layerwise(model, seen, loss, epoch)
        values = {
            "loss": loss,
            "reconstruction": data_term,
            "squared_error": jnp.mean((shown - flatten(target)) ** 2, axis=-1),
            "activation": jnp.mean(code, axis=-1),
        }
        shown = jnp.clip(shown.reshape(target.shape), 0, 1)
        return values, {"clean": target, "seen": seen, "reconstruction": shown}

    @property
    def shown_head(self) -> str:
        """The head that makes pixels of raw outputs."""
        function = getattr(self.loss, "func", self.loss)
        return function.head if self.output.takes == "logits" else self.output.head

    def spoilt(self, images: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        """The images with the noise and the masking that are asked for."""
        if not off(self.noise):
            images = images + self.noise * jax.random.normal(rngs.sample(), images.shape)
        if not off(self.masking):
            kept = jax.random.uniform(rngs.sample(), images.shape) >= self.masking
            images = jnp.where(kept, images, 0)
        return images

    def penalty(self, model: Any, seen: jax.Array, code: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        """What the code costs, [batch]."""
        cost = jnp.zeros(code.shape[0])
        if not off(self.l1_weight):
            cost += self.l1_weight * jnp.sum(jnp.abs(code), axis=-1)
        if not off(self.kl_weight):
            mean = jnp.clip(jnp.mean(code, axis=0), 1e-6, 1 - 1e-6)
            cost += self.kl_weight * jnp.sum(bernoulli_kl(self.kl_target, mean))
        if not off(self.contraction):
            direction = jax.random.normal(rngs.sample(), code.shape, code.dtype)
            frozen, state = nnx.split(model)
            output, back = jax.vjp(lambda x: nnx.merge(frozen, state).encode(x), seen)
            (gradient,) = back(direction.astype(output.dtype))
            cost += self.contraction * jnp.sum(flatten(gradient) ** 2, axis=-1)
        return cost

    def layerwise(self, model: Any, seen: jax.Array, whole: jax.Array, epoch: Any) -> jax.Array:
        """The loss of the layer whose turn it is, and `whole` once all had theirs."""
        if not hasattr(model, "restored"):
            raise UserError("objective.epochs_a_layer needs a model of dense layers: autoencoder")
        layers = len(model.hidden)
        turn = epoch // self.epochs_a_layer
        loss = jnp.where(turn >= layers, whole, 0)
        for index in range(layers):
            before, after = model.restored(seen, index)
            if index:
                own = 0.5 * jnp.sum((after - before) ** 2, axis=-1)
            else:
                own = self.loss(self.output.loss_input(after), before)
            loss += jnp.where(turn == index, own, 0)
        return loss

    def predictions(self, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The images."""
        return outputs


def image_of(batch: dict) -> jax.Array:
    """The images of a batch; raises `UserError` where there are none."""
    if "image" not in batch:
        raise UserError("this model is for images: choose data=digits, mnist or the like")
    return batch["image"]


def bernoulli_kl(p: Any, q: jax.Array) -> jax.Array:
    """KL divergence of a Bernoulli variable of probability p from one of q, in nats."""
    return jax.scipy.special.rel_entr(p, q) + jax.scipy.special.rel_entr(1 - p, 1 - q)


def off(value: Any) -> bool:
    """A number that is exactly 0 in the config; a traced one is on."""
    return isinstance(value, int | float) and value == 0
