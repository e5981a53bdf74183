"""Autoencoders: what their codes hold, and what each kind of them is for."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import compose
from experiments.core.config import objective_of
from experiments.lessons.charts import bars, curves, panels, style
from experiments.lessons.lesson import Lab, Lesson, by_setting, final, inputs_of
from experiments.lessons.networks.few_labels import write_labelled
from experiments.types import PositiveInt
from experiments.viz.figures import INK, LEGEND
from experiments.viz.image_figures import rows
from experiments.viz.pages.statistics import spread

CODES = (2, 8, 16)  # units of the codes that are compared with as many components
NOISE = 0.3  # standard deviation, of pixels in 0..1
TARGET = 0.05  # mean activation of a sparse code
WEIGHTS = (0.1, 1.0, 10.0)  # of the penalty
SHOWN = 10  # images in a row
STACK = ["model.hidden=[128]", "model.latents=64"]


@dataclass(frozen=True, kw_only=True)
class Autoencoders(Lesson):
    """A narrow linear code is PCA's; nonlinear, noisy, sparse and stacked ones do more.

    On digits of 8x8 pixels: linear and nonlinear codes of 2 to 16 units beside as many principal
    components; an autoencoder that has seen noise beside one that has not, both on noisy images; a
    sparse code by either penalty; a decoder with weights of its own and with the encoder's; and a
    classifier with few labels that starts from a stack trained without labels.

    Args:
      epochs: of each autoencoder.
      layer_epochs: for which each layer of a stack is trained.
      labels: of each class that the classifier sees.
      passes: epochs of the classifier.
      draws: of the labelled images.

    References:
      Bourlard & Kamp 1988; Baldi & Hornik 1989; Hinton & Salakhutdinov 2006; Vincent et al. 2008;
      Ng 2011, "Sparse autoencoder"; Bengio et al. 2007.
    """

    epochs: PositiveInt
    layer_epochs: PositiveInt
    labels: PositiveInt
    passes: PositiveInt
    draws: PositiveInt

    def run(self, lab: Lab) -> None:
        self._linear(lab)
        self._denoising(lab)
        self._sparse(lab)
        self._tied(lab)
        self._stacked(lab)

    @property
    def _shared(self) -> list[str]:
        return [
            *("data=digits", "schedule=cosine", f"trainer.epochs={self.epochs}"),
            *("data.batch_size=16", "trainer.log_every=1000"),
        ]

    def _linear(self, lab: Lab) -> None:
        kinds = {
            "linear": ["model=autoencoder", "model.hidden=[]", "init=lecun_normal"],
            "nonlinear": ["model=autoencoder", "model.hidden=[64]", "optim.learning_rate=3e-3"],
        }
        kinds["linear"] += ["optim.learning_rate=3e-2"]
        settings = {
            f"{kind} {code}": [*self._shared, *given, f"model.latents={code}"]
            for kind, given in kinds.items()
            for code in CODES
        }
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("codes", runs)
        error = final(trained, "val/squared_error")
        of = {name: error[[n == name for n in names]] for name in settings}
        seen, unseen = (_pixels(trained[0], split) for split in ("train", "validation"))
        pca, excess, overlap, alike = [], [], [], []
        for code in CODES:
            mean, components = _principal(seen, code)
            pca.append(_error(unseen, mean + (unseen - mean) @ components.T @ components))
            best = _error(seen, mean + (seen - mean) @ components.T @ components)
            for run in (
                run for run, n in zip(trained, names, strict=True) if n == f"linear {code}"
            ):
                w = run.params
                codes = seen @ w["hidden.0.kernel"] + w["hidden.0.bias"]
                back = codes @ w["decoder.0.kernel"] + w["decoder.0.bias"]
                excess.append(_error(seen, back) / best - 1)
                basis = np.linalg.qr(w["decoder.0.kernel"].T)[0]
                overlap.append(np.sum((components @ basis) ** 2) / code)
                units = w["decoder.0.kernel"] / np.linalg.norm(
                    w["decoder.0.kernel"], axis=1, keepdims=True
                )
                alike.append(np.abs(units @ components.T).max(axis=1).mean())
        figure, (ax,) = panels(["error on validation images"], width=5.0)
        found = {k: np.stack([of[f"{k} {code}"] for code in CODES], axis=1) for k in kinds}
        curves(ax, CODES, {"PCA": [pca], **found})
        ax.set(xscale="log", xlabel="units of the code, or components", ylabel="mean squared error")
        ax.set_xticks(CODES, list(map(str, CODES)))
        ax.minorticks_off()
        lab.figure("codes", figure, "A linear code lies on PCA, a nonlinear one below it or not.")
        lab.conclude(
            "a linear autoencoder's error on its training images is PCA's, within 1 %, not below",
            bool(min(excess) > -1e-4 and max(excess) < 0.01),
            f"{min(excess):+.2%} to {max(excess):+.2%} in {len(excess)} runs",
        )
        lab.conclude(
            "its decoder spans the subspace of the first principal components",
            bool(min(overlap) > 0.99),
            f"mean squared cosine of the angles between them {min(overlap):.4f} at least",
        )
        lab.conclude(
            "but its units are not these components: any basis of it will do",
            bool(np.mean(alike) < 0.9),
            f"mean cosine of {np.mean(alike):.2f} with the nearest component",
        )
        for code, own in zip(CODES, pca, strict=True):
            claim = f"a nonlinear code of {code} units restores unseen images better than PCA"
            lab.compare(claim, float(own), of[f"nonlinear {code}"])

    def _denoising(self, lab: Lab) -> None:
        shared = ["model=denoising_autoencoder", "model.latents=128", *self._shared]
        settings = {
            "plain": [*shared, "objective.noise=0.0"],
            "denoising": [*shared, f"objective.noise={NOISE}"],
        }
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("denoising", runs)
        clean = _pixels(trained[0], "validation")
        drawn = np.random.default_rng(0).normal(size=clean.shape)
        noisy = (clean + NOISE * drawn).astype(np.float32)
        errors: dict[str, list[float]] = {"as it is": [_error(clean, noisy)]}
        shown = {"clean": clean, "noisy": noisy}
        for name, run in zip(names, trained, strict=True):
            model: Any = run.model
            restored = np.asarray(model(noisy))
            errors.setdefault(name, []).append(_error(clean, restored))
            shown[name] = restored
        pictures = {name: x[:SHOWN].reshape(-1, 8, 8, 1) for name, x in shown.items()}
        lab.figure(
            "denoising", rows(pictures), "Unseen digits with noise, and what is made of them."
        )
        lab.table(
            f"squared error to the clean image, noise of deviation {NOISE}",
            ["image", "error"],
            [[name, spread(values)] for name, values in errors.items()],
        )
        claim = "an autoencoder trained on noise removes noise: less is left than there was"
        lab.compare(claim, errors["as it is"][0], errors["denoising"])  # one noise for all
        claim = "one that never saw noise leaves more of it"
        lab.compare(claim, errors["plain"], errors["denoising"], paired=True)

    def _sparse(self, lab: Lab) -> None:
        figure, (left, right) = panels(
            ["pull of the penalty on a unit", "where units end"], width=4.4
        )
        activation = np.concatenate([np.logspace(-3, -1, 40), np.linspace(0.11, 0.999, 60)])
        pulls = {penalty: _pull(penalty, activation) for penalty in ("kl", "squared")}
        for index, (name, pull) in enumerate(pulls.items()):
            left.plot(activation, pull, label=name, **style(index, marks=False))
        left.set(xlabel="mean activation", ylabel="size of the gradient at its input", yscale="log")
        left.axvline(TARGET, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        left.legend(**LEGEND)
        ratio = pulls["kl"] / pulls["squared"]
        near = np.abs(activation - TARGET) < 0.02
        far = np.array([0, -1])
        lab.conclude(
            "at equal weight KL pulls harder than the squared penalty, far from the target or near",
            bool((ratio > 1).all()),
            f"{ratio[near].min():.0f} to {ratio[near].max():.0f} times within 0.02 of {TARGET}, "
            f"{ratio.min():.1f} times at least, "
            f"{' and '.join(f'{ratio[i]:.0f} times at {activation[i]:.3f}' for i in far)}",
        )
        lab.conclude(
            "a unit that is always on is pulled hardest by KL, hardly by the squared penalty",
            bool(
                pulls["kl"].argmax() == len(activation) - 1
                and pulls["squared"][-1] < 0.05 * pulls["squared"].max()
            ),
            ", ".join(f"{n} {p[-1]:.2g} of at most {p.max():.2g}" for n, p in pulls.items()),
        )
        shared = [
            "model=sparse_autoencoder",
            "model.latents=64",
            *self._shared,
            f"objective.kl_target={TARGET}",
        ]
        settings = {
            f"{penalty} {weight}": [
                *(*shared, f"objective.penalty={penalty}", f"objective.kl_weight={weight}")
            ]
            for penalty in pulls
            for weight in WEIGHTS
        }
        settings["none"] = [*shared, "objective.kl_weight=0.0"]
        runs, names = by_setting(settings, self.seeds)
        away: dict[str, list[float]] = {}
        for name, run in zip(names, lab.train("sparse", runs), strict=True):
            w, x = run.params, _pixels(run, "validation")
            code = 1 / (1 + np.exp(-x @ w["hidden.0.kernel"] - w["hidden.0.bias"]))
            away.setdefault(name, []).append(float(np.abs(code.mean(axis=0) - TARGET).mean()))
        found = {p: np.stack([away[f"{p} {w}"] for w in WEIGHTS], axis=1) for p in pulls}
        curves(right, WEIGHTS, found)
        right.axhline(float(np.mean(away["none"])), color=INK, linewidth=1, linestyle=(0, (2, 2)))
        right.set(xscale="log", yscale="log", xlabel="weight of the penalty")
        right.set_ylabel("distance of the mean from its target")
        caption = "Left: the line is the target. Right: means over units; the line is no penalty."
        lab.figure("sparse", figure, caption)
        claim = "with a KL penalty of weight 1 mean activations move to the target"
        lab.compare(claim, away["none"], away["kl 1.0"], paired=True)
        for weight in WEIGHTS:
            claim = f"at weight {weight:g} KL brings them nearer than the squared penalty"
            lab.compare(claim, away[f"squared {weight}"], away[f"kl {weight}"], paired=True)

    def _tied(self, lab: Lab) -> None:
        shared = [*self._shared, "model=autoencoder", "model.hidden=[64]", "model.latents=16"]
        settings = {name: [*shared, f"model.tied={name == 'tied'}"] for name in ("free", "tied")}
        runs, names = by_setting(settings, self.seeds)
        trained = lab.train("tied", runs)
        error = final(trained, "val/squared_error")
        of = {name: error[[n == name for n in names]] for name in settings}
        weights, everything = {}, {}
        for name in settings:
            params = trained[names.index(name)].params
            weights[name] = sum(v.size for k, v in params.items() if k.endswith("kernel"))
            everything[name] = sum(v.size for v in params.values())
        lab.conclude(
            "tied weights halve the weights, and so almost the parameters",
            weights["free"] == 2 * weights["tied"],
            f"{weights['tied']:,} of {weights['free']:,} weights; with biases "
            f"{everything['tied']:,} of {everything['free']:,}",
        )
        claim = "they cost reconstruction: free ones have the smaller error on unseen images"
        lab.compare(claim, of["tied"], of["free"], paired=True)

    def _stacked(self, lab: Lab) -> None:
        stack = [
            "data=digits",
            "model=stacked_autoencoder",
            *STACK,
            f"trainer.epochs={self.epochs}",
        ]
        stack += ["loss=binary_cross_entropy", f"objective.epochs_a_layer={self.layer_epochs}"]
        (stacked,) = lab.train("stack", [stack])
        shared = ["data=arrays", "data.mean=[0.0]", "data.std=[1.0]", "data.batch_size=10"]
        shared += ["model=mlp", "model.hidden=[128,64]", "model.activation=sigmoid"]
        shared += [f"trainer.epochs={self.passes}", "trainer.checkpoints=false"]
        starts = {
            "from nothing": [],
            "from a stack": [f"model.pretrained={stacked.folder}"],
        }
        runs, names = [], []
        for draw in range(self.draws):
            file = lab.directory / f"labelled_{draw}.npz"
            write_labelled(file, range(10), self.labels, draw)
            for name, start in starts.items():
                runs.append([*shared, f"data.path={file}", f"seed={draw}", *start])
                names.append(name)
        accuracy = final(lab.train("few_labels", runs), "val/accuracy")
        of = {name: accuracy[[n == name for n in names]] for name in starts}
        figure, (ax,) = panels([f"{self.labels} labels of each class"], width=5.0)
        bars(ax, of)
        ax.set(
            ylabel="accuracy on unseen images", ylim=(min(map(np.min, of.values())) - 0.05, None)
        )
        caption = (
            "A classifier after equal steps, from nothing and from a stack trained layer by layer "
            "without labels, on several draws of the labelled images. The axis is cut off below."
        )
        lab.figure("stacked", figure, caption)
        claim = "with few labels a stack trained layer by layer is a better start than none"
        lab.compare(claim, of["from a stack"], of["from nothing"], paired=True)


def _pixels(run: Any, split: Any) -> np.ndarray:
    """Return all images of a split as the run's autoencoder reads them, [N, pixels] in 0..1."""
    images = inputs_of(run, split, len(getattr(run.splits, split)))
    return np.asarray(run.prepare(images)).reshape(len(images), -1)


def _principal(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D] of examples [N, D] and their first principal components [count, D]."""
    mean = x.mean(axis=0)
    return mean, np.linalg.svd(x - mean, full_matrices=False)[2][:count]


def _error(x: np.ndarray, restored: np.ndarray) -> float:
    return float(np.mean((x - restored) ** 2))


def _pull(penalty: str, activation: np.ndarray) -> np.ndarray:
    """Return the size of the penalty's gradient at the input of a sigmoid unit with such a mean."""
    given = (f"objective.penalty={penalty}", f"objective.kl_target={TARGET}")
    objective = objective_of(
        compose("model=sparse_autoencoder", "objective.kl_weight=1.0", *given), num_classes=10
    )

    def cost(z: jax.Array) -> jax.Array:
        code = jax.nn.sigmoid(z)[None, None]
        return objective.penalties(None, code, code, None)[0]

    z = jnp.log(activation) - jnp.log1p(-activation)
    return np.abs(jax.vmap(jax.grad(cost))(z))
