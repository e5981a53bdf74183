"""Autoencoding: the target is the input itself, perhaps from a corrupted copy of it."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.objectives.classification import HEADS, Classification, Metrics, full_precision
from experiments.types import Decay, Fraction, Head, NonNegative, NonNegativeInt, is_off


@dataclass(kw_only=True, eq=False)
class Autoencoding:
    """Reconstruction of images in 0..1, or of vectors, the loss being summed over the pixels.

    Args:
      loss: mse, binary_cross_entropy or another one of `experiments.objectives.losses`.
      head: of the output; None: the one that goes with the loss.
      noise: standard deviation of Gaussian noise on the input, also in evaluation.
      masking: share of the input's pixels that are set to 0, also in evaluation.
      kl_weight: of the penalty for units of the code whose mean activation is not the target.
      kl_target: that target, ρ.
      penalty: summed over the units, "kl" takes KL(ρ ‖ mean activation) of units in 0..1, "squared"
        (mean activation − ρ)², whose gradient is the weaker one where a unit is hardly ever active.
      l1_weight: of Σ |code|.
      contraction: weight of ‖∂code/∂input‖², estimated without bias from the gradient along one
        random direction of the code.
      epochs_a_layer: epochs for which one layer after the other is trained, each with its own
        layer of the decoder on what the layers below make of the input, before all of them are
        trained together; 0: together from the start. An evaluation is always of all together.

    References:
      Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders";
      Ng 2011, "Sparse autoencoder"; Rifai et al. 2011, "Contractive auto-encoders"; Bengio et al.
      2007, "Greedy layer-wise training of deep networks".
    """

    loss: Any
    head: Head | None
    noise: NonNegative
    masking: Decay
    kl_weight: NonNegative
    kl_target: Fraction
    penalty: Literal["kl", "squared"]
    l1_weight: NonNegative
    contraction: NonNegative
    epochs_a_layer: NonNegativeInt
    num_classes: int

    kind = "autoencoding"
    monitor = ("loss", "min")
    pixels = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.output = Classification(loss=self.loss, head=self.head, num_classes=self.num_classes)
        others = (self.kl_weight, self.l1_weight, self.contraction, self.epochs_a_layer)
        plain = self.output.nats and all(map(is_off, others))  # and with no term of another kind
        self.nats = ("loss", "reconstruction") if plain else ()

    def __call__(
        self, model: Any, batch: dict, rngs: nnx.Rngs, epoch: Any
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        """Return values per example, each [batch], and images by name, each [batch, H, W, C].

        Values: `loss`, with all penalties, or in training that of a single layer;
        `reconstruction`, the data term; `squared_error`, a mean over the pixels; `activation`, the
        mean of the code. Images: `clean`, the target; `seen`, the input with its noise and masking;
        `reconstruction`.
        """
        target = input_of(batch)
        seen = self.corrupted(target, rngs)
        code = model.encode(seen)
        pixels = target.reshape(target.shape[0], -1)
        outputs = full_precision(model.decode(code).reshape(pixels.shape))
        data_term = self.loss(self.output.loss_input(outputs), pixels)
        shown = HEADS[self.output.head](outputs)
        code = full_precision(code)
        loss = data_term + self.penalties(model, seen, code, rngs)
        if self.epochs_a_layer and epoch is not None:
            loss = self.layerwise(model, target, seen, loss, epoch)
        values = {
            "loss": loss,
            "reconstruction": data_term,
            "squared_error": jnp.mean((shown - pixels) ** 2, axis=-1),
            "activation": jnp.mean(code, axis=-1),
        }
        shown = jnp.clip(shown.reshape(target.shape), 0, 1)
        return values, {"clean": target, "seen": seen, "reconstruction": shown}

    def codes(self, model: Any, batch: dict, rngs: nnx.Rngs) -> jax.Array:
        """Return the codes [batch, latents] of images as they are, without noise and masking."""
        return full_precision(model.encode(input_of(batch)))

    def corrupted(self, images: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        """Return the images with noise and masking."""
        if not is_off(self.noise):
            images = images + self.noise * jax.random.normal(rngs.sample(), images.shape)
        if not is_off(self.masking):
            visible = jax.random.uniform(rngs.sample(), images.shape) >= self.masking
            images = jnp.where(visible, images, 0)
        return images

    def penalties(self, model: Any, seen: jax.Array, code: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        """Return the penalties of the code, [batch]."""
        cost = jnp.zeros(code.shape[0])
        if not is_off(self.l1_weight):
            cost += self.l1_weight * jnp.sum(jnp.abs(code), axis=-1)
        if not is_off(self.kl_weight):
            distance = {"kl": bernoulli_kl, "squared": lambda p, q: (q - p) ** 2}[self.penalty]
            cost += self.kl_weight * jnp.sum(distance(self.kl_target, jnp.mean(code, axis=0)))
        if not is_off(self.contraction):
            direction = jax.random.normal(rngs.sample(), code.shape, code.dtype)
            frozen, state = nnx.split(model)
            output, back = jax.vjp(lambda x: nnx.merge(frozen, state).encode(x), seen)
            (gradient,) = back(direction.astype(output.dtype))
            cost += self.contraction * jnp.sum(gradient.reshape(code.shape[0], -1) ** 2, axis=-1)
        return cost

    def layerwise(
        self, model: Any, target: jax.Array, seen: jax.Array, whole: jax.Array, epoch: Any
    ) -> jax.Array:
        """Return the loss of the layer that is trained at this epoch; after all of them, `whole`.

        Each restores what the layers below make of the clean input from what they make of that with
        noise and masking (Vincent et al. 2010, "Stacked denoising autoencoders").

        Raises:
          UserError: the model cannot restore the input of a single layer.
        """
        if not hasattr(model, "restored"):
            raise UserError("objective.epochs_a_layer needs a model of dense layers: autoencoder")
        layers = len(model.hidden)
        turn = epoch // self.epochs_a_layer
        loss = jnp.where(turn >= layers, whole, 0)
        for index in range(layers):
            wanted = model.input_of(target, index)
            restored = model.restored(model.input_of(seen, index), index)
            if index:
                own = 0.5 * jnp.sum((restored - wanted) ** 2, axis=-1)
            else:
                own = self.loss(self.output.loss_input(restored), wanted)
            loss += jnp.where(turn == index, own, 0)
        return loss


def input_of(batch: dict) -> jax.Array:
    """Return the images of a batch, [batch, H, W, C]; vectors are images of one row.

    Raises:
      UserError: the batch has neither.
    """
    vectors = batch.get("sequence")
    if vectors is None or vectors.ndim != 2:
        return image_of(batch)
    return vectors[:, None, :, None]


def is_image(examples: jax.Array) -> bool:
    """Return whether examples [batch, H, W, C] are images, not vectors, which have one row."""
    return examples.shape[1] > 1


def image_of(batch: dict) -> jax.Array:
    """Return the images of a batch, [batch, H, W, C].

    Raises:
      UserError: the batch has none.
    """
    if "image" not in batch:
        raise UserError("this model is for images: choose data=digits, mnist or the like")
    return batch["image"]


def bernoulli_kl(p: Any, q: jax.Array) -> jax.Array:
    """Return the KL divergence of Bernoulli variables with probabilities p and q, in nats.

    It is finite: q is taken as 1e-6 from 0 and 1 at least.
    """
    q = jnp.clip(q, 1e-6, 1 - 1e-6)
    return jax.scipy.special.rel_entr(p, q) + jax.scipy.special.rel_entr(1 - p, 1 - q)
