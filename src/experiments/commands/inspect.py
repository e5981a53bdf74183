"""`mode=inspect`: look inside the weights of a run, by figures and numbers in its folder."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.core.config import build
from experiments.core.experiment import State
from experiments.data.dataset import Batch
from experiments.data.reading.unseen import unseen
from experiments.errors import UserError
from experiments.tracking.jsonl import write_json
from experiments.tracking.terminal import Terminal
from experiments.training.evaluation import Split
from experiments.training.feed import training_examples
from experiments.training.figures import view_of
from experiments.training.restored import Restored, in_wandb
from experiments.training.run_folder import INSPECTION, exclusive, split_source
from experiments.training.setup import Setup
from experiments.viz import drawing
from experiments.viz.trial_view import TrialView

if TYPE_CHECKING:
    from experiments.viz.inspection import Figures

log = logging.getLogger(__name__)

Pictures = tuple[list[str], np.ndarray]  # what they are called, and themselves as stored

NUMBERS = "inspect.json"
BATCH = (32, 256)  # fewest and most training examples that layers are looked at with
SHOWN = 6  # pictures
SPLIT: Split = "validation"  # of the examples: the test split is for the figures that are reported


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Write `inspect/*.png` and `inspect/inspect.json` in the folder of the run and print where.

    The pictures, mistakes and maps are of the validation split, the numbers of layers are of a
    batch of the training. `input=` names other pictures for the maps of what is seen in them: it
    has a folder of its name in `inspect/`.
    """
    given = None if config["input"] is None else _pictures(config)
    terminal = Terminal()
    run = Restored({**config, "eval": {**config["eval"], "tta": None}}, source, terminal)
    run_folder, _ = split_source(source)
    trial = view_of(run.setup, run.hparams, run_folder, SPLIT)
    shown, titles = _shown(trial, given)

    from experiments.viz import inspection  # imports matplotlib

    terminal.status("looking inside")
    parts = (
        inspection.layers(trial, *_next_step(run.setup, run.state)),
        inspection.pictures(trial, run.weights, shown, titles),
        inspection.examples(trial, run.weights, lambda: run.predict(SPLIT)[1]),
        inspection.time(trial, run.weights),
    )
    figures: inspection.Figures = {}
    numbers: dict[str, Any] = {
        "checkpoint": str(source),
        "split": SPLIT,
        "step": int(run.state.step),
    }
    for drawn, found in parts:
        figures |= drawn
        numbers |= found
    name = INSPECTION
    if given is not None:
        name += "/" + re.sub(r"[^\w.-]+", "-", Path(config["input"]).name)
    folder = run_folder / name
    with exclusive(run_folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        drawing.submit(_draw, figures, folder).result()
        write_json(folder / NUMBERS, numbers)
        with in_wandb(run, run_folder) as (wandb, step):
            for figure in figures:
                wandb.figure(step, f"{name}/{figure}", folder / f"{figure}.png")
    terminal.finish({}, "finished")
    print(f"{folder}: {', '.join([*figures, NUMBERS])}")


def _draw(figures: "Figures", folder: Path) -> None:
    for name, draw in figures.items():
        drawing.save(draw(), folder / f"{name}.png")


def _next_step(setup: Setup, state: State) -> tuple[State, Batch]:
    """Return what a step of the training starts from, and its batch.

    After the last one a schedule has come to an end, so the step is that one again.
    """
    last = max(min(int(state.step), setup.experiment.total_steps - 1), 0)
    count = int(np.clip(setup.batch_size, *BATCH))
    split, seed = setup.splits.train, setup.config["seed"]
    return (
        state._replace(step=np.int32(last)),
        training_examples(split, setup.batch_size, count, seed),
    )


def _shown(trial: TrialView, given: Pictures | None) -> tuple[Batch, list[str]]:
    """Return the examples whose maps are drawn, and what they are called.

    Raises:
        UserError: pictures are given, and the model reads them as sequences.
    """
    batch = trial.examples(SPLIT, SHOWN)
    if given is None:
        count = len(next(iter(batch.values())))
        labels = batch.get("label", np.zeros((count, 0)))
        classes = (
            [f": true {trial.labels[n]}" for n in labels] if labels.ndim == 1 else [""] * count
        )
        return batch, [f"{index}{name}" for index, name in enumerate(classes)]
    if len(trial.experiment.input_shape) != 3:
        raise UserError(f"input={trial.config['input']}: this model does not read pictures")
    titles, images = given
    batch = {n: np.zeros((len(images), *a.shape[1:]), a.dtype) for n, a in batch.items()}
    return batch | {"image": images.astype(batch["image"].dtype)}, titles


def _pictures(config: Mapping[str, Any]) -> Pictures:
    """Return the names of the first files that `input=` means, and their pictures as stored.

    Raises:
        UserError: they are no pictures, or not those of such a model.
    """
    name = f"input={config['input']}"
    if config["model"].get("conditional"):
        raise UserError(f"{name}: this model reads the class of each picture, too")
    read = unseen(build(config["data"]), config["input"], log.warning)
    rows, images = next(iter(read(SHOWN)), ({}, np.zeros(0)))
    if not len(images):
        raise UserError(f"{name} has no examples")
    if images.ndim != 4:
        raise UserError(f"{name}: mode=inspect takes pictures, and this run has learnt from none")
    places = rows.get("index", [None] * len(images))
    files = (Path(file).name for file in rows["file"])
    titles = [f if i is None else f"{f} {i}" for f, i in zip(files, places, strict=True)]
    return titles, images
