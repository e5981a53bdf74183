"""Variational inference: the evidence lower bound of a model with latent variables.

The likelihood of a pixel in 0..1, given the decoder's output for it, is a function (outputs,
log_scale, targets), all of one shape but the scalar `log_scale`, the logarithm of a width shared by
all pixels; it returns the log-likelihood of each pixel in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.errors import UserError
from experiments.objectives.autoencoding import input_of, is_image
from experiments.objectives.classification import Metrics, full_precision, targets_of
from experiments.types import NonNegative, NonNegativeInt, is_off

LEVELS = 256  # values that a pixel can have


def bernoulli(outputs: jax.Array, log_scale: jax.Array | None, targets: jax.Array) -> jax.Array:
    """Return x z − log(1 + eᶻ): each pixel is on with probability σ(z)."""
    return targets * outputs - jax.nn.softplus(outputs)


def gaussian(outputs: jax.Array, log_scale: jax.Array, targets: jax.Array) -> jax.Array:
    """Return a normal log-density around the output; all pixels share a standard deviation."""
    z = (targets - outputs) * jnp.exp(-log_scale)
    return -0.5 * z**2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)


def logistic(outputs: jax.Array, log_scale: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the log-probability of one of 256 levels by a discretized logistic distribution.

    It lies around the output; the first and the last level take the tails.

    References:
      Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow",
      arXiv:1606.04934.
    """
    half = 0.5 / (LEVELS - 1)
    above = (targets + half - outputs) * jnp.exp(-log_scale)
    below = (targets - half - outputs) * jnp.exp(-log_scale)
    # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b − a)), exactly
    width = 2 * half * jnp.exp(-log_scale)
    middle = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(-width))
    black, white = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
    return jnp.where(targets < half, black, jnp.where(targets > 1 - half, white, middle))


LIKELIHOODS: dict[str, Callable[..., jax.Array]] = {
    function.__name__: function for function in (bernoulli, gaussian, logistic)
}


@dataclass(kw_only=True, eq=False)
class Variational:
    """The negative evidence lower bound of images in 0..1, in nats (Kingma & Welling 2014).

    Args:
      beta: weight of the KL divergence (Higgins et al. 2017).
      warmup_epochs: epochs over which that weight rises from 0 (Bowman et al. 2016).
      free_bits: nats of a latent's KL divergence, on the mean over the batch, that cost nothing
        (Kingma et al. 2016, arXiv:1606.04934, eq. 15).
      binarise: "none" takes pixels as they are, "threshold" cuts them at 0.5, "stochastic" draws
        them every time with their value as the probability (Salakhutdinov & Murray 2008).
      importance_samples: k of the importance-weighted bound in evaluation (Burda et al. 2016);
        0: do not compute it.

    Raises:
      UserError: there is a `loss` besides the bound.
    """

    loss: Any
    beta: NonNegative
    warmup_epochs: NonNegative
    free_bits: NonNegative
    binarise: Literal["none", "threshold", "stochastic"]
    importance_samples: NonNegativeInt
    num_classes: int

    kind = "variational"
    monitor = ("loss", "min")
    pixels = (0.0, 1.0)
    nats = ("loss", "elbo", "reconstruction", "kl", "iwae")

    def __post_init__(self) -> None:
        if self.loss is not None:
            raise UserError(
                "the loss of this model is its bound: leave out loss=, and choose a "
                "model.likelihood=bernoulli, gaussian or logistic"
            )

    def __call__(
        self, model: Any, batch: dict, rngs: nnx.Rngs, epoch: Any
    ) -> tuple[Metrics, dict[str, jax.Array]]:
        """Return values per example, each [batch], and images by name, each [batch, H, W, C].

        Values, in nats: `elbo` = −`reconstruction` − `kl`; `loss`, −`elbo` with beta, warm-up and
        free bits; in evaluation `iwae`, the bound of k samples. Images: `target`, `reconstruction`.
        """
        target = self.binary(input_of(batch), rngs)
        if "image" not in batch and model.likelihood != "gaussian":
            raise UserError(
                f"model.likelihood={model.likelihood} is of values in 0..1; of vectors: gaussian"
            )
        condition = class_of(batch, self.num_classes) if model.conditional else None
        mean, log_variance = map(full_precision, model.encode(target, condition))
        z = self.sampled(mean, log_variance, rngs.sample())

        def log_likelihood(z: jax.Array) -> jax.Array:  # log p(x|z) [batch] in nats
            outputs = full_precision(model.decode(z, condition))
            scale = None if model.log_scale is None else full_precision(model.log_scale[...])
            pixels = LIKELIHOODS[model.likelihood](outputs, scale, full_precision(target))
            return jnp.sum(pixels.reshape(pixels.shape[0], -1), axis=-1)

        likelihood = log_likelihood(z)
        kl = 0.5 * (mean**2 + jnp.exp(log_variance) - log_variance - 1)  # [batch, latents]
        total = jnp.sum(kl, axis=-1)
        values = {
            "loss": self.weight(epoch) * self.charged(kl) - likelihood,
            "elbo": likelihood - total,
            "reconstruction": -likelihood,
            "kl": total,
        }
        if self.importance_samples and "dropout" not in rngs:
            values["iwae"] = self.bound(log_likelihood, mean, log_variance, rngs.sample())
        shown = self.mean_image(model, mean, condition)
        shown = jnp.clip(shown, 0, 1) if is_image(shown) else shown
        return values, {"target": target, "reconstruction": shown}

    def codes(self, model: Any, batch: dict, rngs: nnx.Rngs) -> jax.Array:
        """Return the means of q(z|x), [batch, latents]."""
        condition = class_of(batch, self.num_classes) if model.conditional else None
        return full_precision(model.encode(self.binary(input_of(batch), rngs), condition)[0])

    def generated(self, model: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        """Return examples [n, H, W, C] of latents, images in 0..1.

        A conditional model reads `labels` [n].
        """
        condition = class_of({"label": labels}, self.num_classes) if model.conditional else None
        mean = self.mean_image(model, z, condition)
        return jnp.clip(mean, 0, 1) if is_image(mean) else mean

    def mean_image(self, model: Any, z: jax.Array, condition: jax.Array | None) -> jax.Array:
        """Return the mean of p(x|z) [batch, H, W, C]."""
        outputs = full_precision(model.decode(z, condition))
        return jax.nn.sigmoid(outputs) if model.likelihood == "bernoulli" else outputs

    def binary(self, images: jax.Array, rngs: nnx.Rngs) -> jax.Array:
        """Return the images, binarised where that is asked for."""
        if self.binarise == "threshold":
            return (images > 0.5).astype(images.dtype)
        if self.binarise == "stochastic":
            drawn = jax.random.uniform(rngs.sample(), images.shape) < images
            return drawn.astype(images.dtype)
        return images

    def weight(self, epoch: Any) -> Any:
        """Return the weight of the KL divergence after so many epochs; in evaluation, all of it."""
        if epoch is None or is_off(self.warmup_epochs):
            return self.beta
        return self.beta * jnp.minimum(epoch / self.warmup_epochs, 1)

    def charged(self, kl: jax.Array) -> jax.Array:
        """Return the sum [batch] of the KL divergences of all latents [batch, latents].

        Where the mean of a latent is below `free_bits` it counts as that constant.
        """
        if is_off(self.free_bits):
            return jnp.sum(kl, axis=-1)
        free = jnp.mean(kl, axis=0) <= self.free_bits
        return jnp.sum(jnp.where(free, self.free_bits, kl), axis=-1)

    def sampled(self, mean: jax.Array, log_variance: jax.Array, key: jax.Array) -> jax.Array:
        """Return a sample of q(z|x), differentiable in its moments."""
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)

    def bound(
        self, log_likelihood: Callable, mean: jax.Array, log_variance: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Return log 1/k Σ p(x, zᵢ) / q(zᵢ|x) [batch] (Burda et al. 2016, eq. 8)."""

        def log_weight(key: jax.Array) -> jax.Array:
            z = self.sampled(mean, log_variance, key)
            noise = (z - mean) * jnp.exp(-0.5 * log_variance)
            log_ratio = 0.5 * jnp.sum(noise**2 + log_variance - z**2, axis=-1)  # log p(z)/q(z|x)
            return log_likelihood(z) + log_ratio

        logs = jax.lax.map(log_weight, jax.random.split(key, self.importance_samples))
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(self.importance_samples)


def class_of(batch: dict, num_classes: int) -> jax.Array:
    """Return one-hot (or mixed) classes [batch, num_classes].

    Raises:
      UserError: the batch has no labels.
    """
    if "label" not in batch:
        raise UserError("model.conditional=true needs data with labels")
    return targets_of(batch, num_classes)
