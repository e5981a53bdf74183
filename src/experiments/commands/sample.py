"""Let the weights of a language model write text, and those of a VAE or a GAN draw pictures."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.core.config import build
from experiments.core.generation import generate
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.objectives.sequence import Language
from experiments.tracking.terminal import Terminal
from experiments.training.figures import view_of
from experiments.training.restored import Restored
from experiments.training.run_folder import split_source
from experiments.types import NonNegative, PositiveInt
from experiments.viz import drawing
from experiments.viz.trial_view import TrialView

TOGETHER = 500  # pictures that are made as one batch
SHOWN = 100  # pictures in the PNG


@dataclass(frozen=True)
class Sample:
    """The keys of `sample`.

    Args:
        prompt: text to continue, in which \\n is a new line; None: a new line.
        temperature: of the distribution of the next character; 0: always the likeliest one.
        length: of the new text, in characters.
        count: pictures that a VAE or a GAN draws.
    """

    prompt: str | None
    temperature: NonNegative
    length: PositiveInt
    count: PositiveInt


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Print the prompt and what the model writes after it, and write both to `sample.txt`.

    What a VAE or a GAN draws is written to `samples.npz`: `x` [count, H, W, C] in 0..1, the latents
    `z` [count, latents] that it is made of and, of a conditional model, the classes `y` [count],
    each in its turn. `samples.png` shows up to a hundred pictures, or all points in the plane.
    """
    wanted: Sample = build(config["sample"])
    run = Restored(config, source, Terminal())
    objective = run.setup.objective
    if hasattr(objective, "generated"):
        if wanted.prompt or wanted.temperature != 1:
            raise UserError(
                "sample.prompt and sample.temperature are for language models; "
                f"this run is {objective.kind}: say sample.count=... and seed=..."
            )
        draw(run, wanted.count, config["seed"], directory, source)
        return
    if not isinstance(objective, Language):
        raise UserError(
            f"mode=sample is for language models, VAEs and GANs; this run is of {objective.kind}"
        )
    prompt = None if not wanted.prompt else wanted.prompt.replace("\\n", "\n")
    written = generate(
        run.setup.experiment,
        run.hparams,
        run.weights,
        "".join(run.setup.splits.class_names),
        length=wanted.length,
        prompt=prompt,
        temperature=wanted.temperature,
        seed=config["seed"],
    )
    text = (prompt or "") + written
    write_whole(directory / "sample.txt", text)
    print(text)


def draw(run: Restored, count: int, seed: int, directory: Path, source: Path | None) -> None:
    """Write so many examples of a model's own, of noise by this seed, and print where."""
    experiment, model = run.setup.experiment, run.config["model"]
    classes = experiment.spec.num_classes

    @jax.jit
    def generated(weights: Any, hparams: Any, z: jax.Array, labels: jax.Array) -> jax.Array:
        network = experiment.trained_model(hparams, *weights)
        return experiment.objective(hparams).generated(network, z, labels)

    z = np.asarray(jax.random.normal(jax.random.key(seed), (count, model["latents"])))
    labels = np.arange(count) % max(classes, 1)
    parts = [
        generated(run.weights, run.hparams, z[i : i + TOGETHER], labels[i : i + TOGETHER])
        for i in range(0, count, TOGETHER)
    ]
    examples = np.concatenate([np.asarray(part, np.float32) for part in parts])
    examples = examples.reshape(count, *experiment.input_shape)
    arrays = {"x": examples, "z": z} | ({"y": labels} if model["conditional"] else {})
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    write_whole(directory / "samples.npz", file.getvalue())
    picture = directory / "samples.png"
    if examples.shape[1:] == (2,):
        folder = split_source(source)[0] if source else directory
        trial = view_of(run.setup, run.hparams, folder, "validation")
        drawing.submit(_points, trial, examples, picture).result()
    elif examples.ndim == 4:
        columns = classes if model["conditional"] and classes <= SHOWN else None
        drawing.submit(_pictures, examples[:SHOWN], columns, picture).result()
    else:  # other vectors
        print(f"{directory / 'samples.npz'}: {count} examples")
        return
    print(f"{picture} and samples.npz: {count} {'pictures' if examples.ndim == 4 else 'points'}")


def _points(trial: TrialView, points: np.ndarray, path: Path) -> None:
    from experiments.viz.plane_figures import samples  # imports matplotlib, as few commands need it

    drawing.save(samples(trial, points), path)


def _pictures(images: np.ndarray, columns: int | None, path: Path) -> None:
    from experiments.viz.image_figures import grid

    drawing.save(grid(images, "samples", columns), path)
