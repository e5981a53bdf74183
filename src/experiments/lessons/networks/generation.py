"""Models that generate: variational autoencoders and adversarial networks."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lessons.charts import bars, curves, panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting, final, inputs_of
from experiments.objectives.adversarial import energy_distance, minimax, non_saturating
from experiments.types import PositiveInt
from experiments.viz.figures import FAINT, LEGEND
from experiments.viz.image_figures import rows
from experiments.viz.pages.statistics import spread

BETAS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
LATENTS = 8
ACTIVE = 0.01  # variance of a latent's mean over images from which it is in use (Burda et al. 2016)
SHOWN = 10  # images in a row
POINTS = 2000  # samples of a generator of points
CLOUDS, RADIUS, NOISE = 8, 0.8, 0.05  # of the ring
SHARE = 0.02  # of the samples that a cloud has at least if it is found; an equal share is 0.125
LOSSES = {
    "minimax": ["loss=minimax"],
    "non-saturating": ["loss=non_saturating"],
    "Wasserstein": ["loss=wasserstein_gp", "loss.gradient_penalty=1.0"],
}


@dataclass(frozen=True, kw_only=True)
class Generation(Lesson):
    """What the KL term is for, why generators are trained by another loss, and what they miss.

    A variational autoencoder of digits at several weights of its KL divergence: how well it
    restores, how many latents it uses, how near its samples are to digits, and what lies between
    two codes. Adversarial networks of points from eight clouds on a circle: the gradient that each
    loss hands to the generator, the losses of both players, and how many clouds are found.

    How many depends on the settings. On narrower clouds, of deviation 0.02, in 60 epochs and 8
    seeds the non-saturating loss found 3.0 of them, minimax 0.1, and the Wasserstein loss as in its
    paper, a penalty of weight 10 and five steps of the discriminator for each of the generator, 0.1
    too, perhaps as its generator takes few steps. Here the weight is 1 and both players take equal
    steps; which of these three changes turns the order is not measured.

    Args:
      epochs: of each variational autoencoder.
      rounds: epochs of each adversarial network.
      starts: seeds of each adversarial network.

    References:
      Kingma & Welling 2014; Higgins et al. 2017, "beta-VAE"; Goodfellow et al. 2014, section 3;
      Metz et al. 2017, "Unrolled generative adversarial networks"; Gulrajani et al. 2017.
    """

    epochs: PositiveInt
    rounds: PositiveInt
    starts: PositiveInt

    def run(self, lab: Lab) -> None:
        self._divergence(lab)
        self._gradients(lab)
        self._ring(lab)

    def _divergence(self, lab: Lab) -> None:
        shared = ["model=vae", "data=digits", "model.hidden=[128]", f"model.latents={LATENTS}"]
        shared += [f"trainer.epochs={self.epochs}", "optim.learning_rate=3e-3", "schedule=cosine"]
        shared += ["trainer.log_every=1000"]
        settings = {f"{beta}": [*shared, f"objective.beta={beta}"] for beta in BETAS}
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("vae", runs)
        images = inputs_of(trained[0], "validation", 1000)
        seen = _pixels(trained[0], inputs_of(trained[0], "train", 2000))
        z = np.random.default_rng(0).normal(size=(len(images), LATENTS)).astype(np.float32)
        restored, divergence = (final(trained, f"val/{m}") for m in ("reconstruction", "kl"))
        used, away = [], []
        samples: dict[str, np.ndarray] = {}
        for name, run in zip(names, trained, strict=True):
            model: Any = run.model
            drawn = jax.nn.sigmoid(model.decode(z, None))
            samples.setdefault(name, np.asarray(drawn))
            pixels = run.prepare(images)
            used.append(int((np.var(model.encode(pixels, None)[0], axis=0) > ACTIVE).sum()))
            weights = jnp.ones(len(images))
            away.append(float(energy_distance(pixels, drawn, weights)[0]))

        def of(values: Any) -> np.ndarray:  # [seeds, betas]
            return np.asarray(values).reshape(len(BETAS), self.seeds).T

        figure, (left, middle, right) = panels(
            ["in nats, on validation images", "latents in use", "samples against images"], width=3.4
        )
        curves(left, BETAS, {"reconstruction": of(restored), "KL": of(divergence)})
        curves(middle, BETAS, {f"of {LATENTS}": of(used)})
        curves(right, BETAS, {"samples of the prior": of(away)})
        left.set(ylabel="nats")
        middle.set(ylabel="number", ylim=(0, LATENTS + 0.5))
        right.set(ylabel="energy distance", ylim=(0, None))
        for ax in (left, middle, right):
            ax.set(xscale="log", xlabel="weight of the KL divergence")
        caption = (
            "What the weight of the KL divergence does; means with ± one deviation over seeds."
        )
        lab.figure("divergence", figure, caption)
        pictures = rows({f"weight {name}": images[:SHOWN] for name, images in samples.items()})
        caption = "Decoded draws from the prior, the same for each weight of the KL divergence."
        lab.figure("samples", pictures, caption)
        means = [of(values).mean(axis=0) for values in (restored, divergence)]
        lab.conclude(
            "the heavier the KL divergence, the smaller it gets and the worse images are restored",
            bool((np.diff(means[0]) > 0).all() and (np.diff(means[1]) < 0).all()),
            f"KL from {means[1][0]:.1f} to {means[1][-1]:.2f} nats, reconstruction from "
            f"{means[0][0]:.1f} to {means[0][-1]:.1f}",
        )
        few, many = (of(used)[:, BETAS.index(beta)] for beta in (BETAS[-1], BETAS[0]))
        claim = "under a heavy one latents fall out of use"
        lab.compare(claim, many, few)
        light, plain = (of(away)[:, BETAS.index(beta)] for beta in (BETAS[0], 1.0))
        claim = "with a weight of 0.01 samples of the prior are further from digits than with 1"
        lab.compare(claim, light, plain)
        self._between(lab, trained[names.index("1.0")], images, seen)

    def _between(self, lab: Lab, run: Any, images: np.ndarray, seen: np.ndarray) -> None:
        """Interpolate between the codes of pairs of images, and between their pixels."""
        model = run.model
        codes = np.asarray(model.encode(run.prepare(images), None)[0])
        first, second = codes[0:-1:2], codes[1::2]
        ends = [_flat(jax.nn.sigmoid(model.decode(code, None))) for code in (first, second)]
        middle = _flat(jax.nn.sigmoid(model.decode((first + second) / 2, None)))
        nearest = {
            "codes": _to_nearest(middle, seen),
            "pixels": _to_nearest((ends[0] + ends[1]) / 2, seen),
        }
        claim = "halfway between two codes is more like a digit than halfway between two images"
        lab.compare(claim, nearest["pixels"], nearest["codes"], paired=True)
        share = np.linspace(0, 1, SHOWN, dtype=np.float32)[None, :, None]
        pairs = slice(0, 3)
        by_code = (1 - share) * first[pairs, None] + share * second[pairs, None]
        drawn = jax.nn.sigmoid(model.decode(by_code.reshape(-1, LATENTS), None))
        mixed = (1 - share) * ends[0][pairs, None] + share * ends[1][pairs, None]
        both = {"codes": np.asarray(drawn).reshape(mixed.shape), "pixels": mixed}
        lines = {
            f"pair {pair + 1}, {what}": images[pair].reshape(-1, 8, 8, 1)
            for pair in range(3)
            for what, images in both.items()
        }
        caption = "From digit to digit: the decoded codes between them, and their mixed pixels."
        lab.figure("interpolation", rows(lines), caption)

    def _gradients(self, lab: Lab) -> None:
        score = jnp.linspace(-8, 8, 161)
        losses = {"minimax": minimax, "non-saturating": non_saturating}
        slopes = {
            name: np.abs(
                jax.vmap(jax.grad(lambda s, loss=loss: loss(s, s, label_smoothing=0.0)[1]))(score)
            )
            for name, loss in losses.items()
        }
        figure, (ax,) = panels(["pull on the generator"], width=4.6)
        taken = np.asarray(jax.nn.sigmoid(score))
        for index, (name, slope) in enumerate(slopes.items()):
            ax.plot(taken, slope, label=name, **style(index, marks=False))
        ax.set(xlabel="D(G(z)): how real the sample looks to the discriminator")
        ax.set(ylabel="size of the gradient at its score")
        ax.legend(**LEGEND)
        lab.figure(
            "gradients", figure, "Left is the start: the discriminator sees through samples."
        )
        at = int(np.argmin(np.abs(taken - 0.01)))
        low, high = (slopes[name][at] for name in losses)
        lab.conclude(
            "where the discriminator is sure of a sample, minimax hands on no gradient, the "
            "non-saturating loss almost all",
            bool(low < 0.02 and high > 0.9),
            f"{low:.3f} against {high:.3f} at D(G(z)) = {taken[at]:.3f}",
        )

    def _ring(self, lab: Lab) -> None:
        shared = ["model=gan", "data=ring", f"data.noise={NOISE}", "model.hidden=[64,64]"]
        shared += ["model.latents=8", f"trainer.epochs={self.rounds}", "trainer.log_every=1000"]
        shared += ["optim.learning_rate=1e-3", "discriminator_optim.learning_rate=1e-3"]
        settings = {name: [*shared, *given] for name, given in LOSSES.items()}
        runs, names = by_setting(settings, self.starts)
        trained = lab.train("ring", runs)
        rng = np.random.default_rng(0)
        found: dict[str, list[int]] = {}
        near: dict[str, list[float]] = {}
        figure, axes = panels(list(settings), width=3.0)
        for name, run in zip(names, trained, strict=True):
            model: Any = run.model
            z = rng.normal(size=(POINTS, 8)).astype(np.float32)
            points = np.asarray(model.generator(z, None)).reshape(-1, 2)
            share = _shares(points)
            if name not in found:
                ax = axes[list(settings).index(name)]
                look: Any = {"color": FAINT, "ms": 2, "alpha": 0.5, "label": "data"}
                ax.plot(*inputs_of(run, "train", 400).T, "o", **look)
                ax.plot(*points[:400].T, "x", color="#d9822b", ms=3, mew=0.7, label="samples")
                ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal", xlabel="x", ylabel="y")
            found.setdefault(name, []).append(int((share >= SHARE).sum()))
            near.setdefault(name, []).append(float(share.sum()))
        handles = axes[0].get_lines()
        figure.legend(handles=handles, **LEGEND, loc="outside lower center", ncols=2)
        caption = "Samples (crosses) over data (dots), one run of each loss."
        lab.figure("ring", figure, caption)
        figure, axes = panels([f"losses, {name}" for name in settings] + ["clouds found"], 2)
        for ax, name in zip(axes, settings, strict=False):
            history = trained[names.index(name)].metrics
            for index, player in enumerate(("discriminator", "generator")):
                values = history[f"train/epoch_{player}_loss"].dropna().to_numpy()
                ax.plot(values, label=player, **style(index, marks=False))
            ax.set(xlabel="epoch", ylabel="loss")
            ax.legend(**LEGEND)
        bars(axes[-1], {name: np.asarray(values, float) for name, values in found.items()})
        axes[-1].set(ylabel=f"of {CLOUDS} clouds", ylim=(0, CLOUDS + 0.5))
        lab.figure("players", figure, "Both players of one run of each loss, and the clouds found.")
        lab.table(
            f"of {CLOUDS} clouds, with at least {SHARE:.0%} of the samples within three deviations",
            ["loss", "found", "runs that found all", "samples near any"],
            [
                [n, spread(v), f"{sum(c == CLOUDS for c in v)} of {len(v)}", spread(near[n])]
                for n, v in found.items()
            ],
        )
        lost = sum(count < CLOUDS for count in found["non-saturating"])
        lab.conclude(
            "the non-saturating loss loses clouds in some runs: mode collapse",
            lost > 0,
            f"{lost} of {self.starts} runs; {spread(found['non-saturating'])} clouds",
        )
        claim = "the Wasserstein loss with a gradient penalty finds more of them"
        lab.compare(claim, found["Wasserstein"], found["non-saturating"])
        claim = "the non-saturating loss finds more of them than minimax"
        lab.compare(claim, found["non-saturating"], found["minimax"])


def _pixels(run: Any, images: np.ndarray) -> np.ndarray:
    return _flat(run.prepare(images))


def _flat(images: Any) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1)


def _to_nearest(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each of some images [N, D] to the nearest of others [M, D]."""
    return np.array([np.sqrt(((one - others) ** 2).sum(axis=1).min()) for one in x])


def _shares(points: np.ndarray) -> np.ndarray:
    """Return the share of points [N, 2] within three deviations of each cloud, [CLOUDS]."""
    angles = 2 * np.pi * np.arange(CLOUDS) / CLOUDS
    centres = RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    away = np.linalg.norm(points[:, None] - centres, axis=2)
    return (away < 3 * NOISE).mean(axis=0)
