"""The figures of runs: drawn in the background, saved in the run folder, given to trackers."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.core.config import settled
from experiments.core.experiment import Tree
from experiments.data.dataset import Batch
from experiments.data.pipeline import resize
from experiments.errors import UserError
from experiments.models.cnn_layers import Function
from experiments.tracking.jsonl import METRICS, read_history
from experiments.tracking.tracker import Tracker, Trackers
from experiments.training.distributed import is_first
from experiments.training.evaluation import Predictions, Split
from experiments.training.feed import evaluation_batches
from experiments.training.restored import Restored
from experiments.training.saving.config import saved_config, with_found
from experiments.training.setup import Setup
from experiments.training.trial import Trial
from experiments.viz import drawing
from experiments.viz.trial_view import (
    DRAWN_DURING_TRAINING,
    Classifier,
    Drawings,
    TrialView,
    figures_of,
)

log = logging.getLogger(__name__)

SCORED = 500  # images that a classifier looks at together
DURING = 25  # most evaluations of a run after which figures are drawn

Drawn = tuple[dict[str, Path], dict[str, float]]  # the pictures by name, and metrics


class Figures:
    """The times at which a run is drawn, of a process that leaves that to another one.

    Args:
      kind: of its objective.
      every: evaluations from one drawing during the training to the next.
    """

    def __init__(self, kind: str, every: int):
        self.every, self._during = every, kind in DRAWN_DURING_TRAINING

    def due(self, number: int) -> bool:
        """Return whether to draw after an evaluation; the first is 1."""
        return self._during and number % self.every == 0

    def after_epoch(self, step: int, weights: tuple[Tree, Tree]) -> None:
        """Start drawing (params, model_state), arrays that no later step overwrites."""

    def flush(self, step: int) -> None:
        """Wait for what is being drawn and hand it over as of `step`: steps never decrease."""

    def finish(
        self, step: int, weights: tuple[Tree, Tree], predictions: Predictions
    ) -> dict[str, float]:
        """Draw the best weights and hand over their figures; return metrics of them.

        These are of the view's split: `test/*` or `val/*`.
        """
        return {}


class RunFigures(Figures):
    """The figures of one run; those of an evaluation are drawn while the training goes on.

    A figure that cannot be drawn is logged, and the run goes on.

    Args:
      trial: the trial that is trained.
      directory: its run folder; pictures go to `figures/`.
      trackers: they get each picture once it is saved.
      every: evaluations from one drawing during the training to the next.
    """

    def __init__(self, trial: TrialView, directory: Path, trackers: Tracker, every: int):
        super().__init__(trial.kind, every)
        self.trial, self.trackers = trial, trackers
        self.folder = directory / "figures"
        self._under_way: Future[Drawn] | None = None
        drawing.warm_up()  # imports in a thread are safe now that the data are read

    def after_epoch(self, step: int, weights: tuple[Tree, Tree]) -> None:
        self.flush(step)
        self._under_way = drawing.submit(self._draw, "during", f"_{step:08d}", weights)

    def flush(self, step: int) -> None:
        if self._under_way is not None:
            drawn, self._under_way = self._under_way, None
            if metrics := self._hand_over(step, drawn):
                self.trackers.log(step, {f"val/{name}": v for name, v in metrics.items()})

    def finish(
        self, step: int, weights: tuple[Tree, Tree], predictions: Predictions
    ) -> dict[str, float]:
        self.flush(step)
        metrics = self._hand_over(
            step, drawing.submit(self._draw, "final", "", weights, predictions)
        )
        for name, path in drawing.submit(self._animate).result().items():
            self.trackers.figure(step, name, path)
        if table := self.trial.table(predictions):
            self.trackers.predictions(step, f"predictions/{self.trial.split}", table)
        prefix = "test" if self.trial.split == "test" else "val"
        return {f"{prefix}/{name}": value for name, value in metrics.items()}

    def _hand_over(self, step: int, drawn: Future[Drawn]) -> dict[str, float]:
        pictures, metrics = drawn.result()
        for name, path in pictures.items():
            self.trackers.figure(step, name, path)
        return metrics

    # ------------------------------------------------------------------ in the drawing thread

    def _draw(self, when: str, suffix: str, *arguments: Any) -> Drawn:
        """Compute and save figures; the names of their files end with the suffix."""
        from experiments.viz.layer_figures import layers_of  # imports matplotlib

        drawings, pictures, figures = Drawings({}), dict[str, Path](), dict[str, Callable]()
        with _logged("the figures"):
            self.folder.mkdir(exist_ok=True)
            drawings = getattr(figures_of(self.trial.kind), when)(self.trial, *arguments)
            figures = {**drawings.figures}
            if when == "final":
                figures |= layers_of(self.trial)
        for name, draw in figures.items():
            path = self.folder / f"{name}{suffix}.png"
            with _logged(f"figures/{path.name}"):
                drawing.save(draw(), path)
                pictures[name] = path
        return pictures, dict(drawings.metrics)

    def _animate(self) -> dict[str, Path]:
        animations: dict[str, Path] = {}
        for name in figures_of(self.trial.kind).animated:
            with _logged(f"figures/{name}.gif"):
                if path := drawing.animate(self.folder, name):
                    animations[f"{name}_over_time"] = path
        return animations


@contextlib.contextmanager
def _logged(name: str) -> Iterator[None]:
    """Log an error, and go on."""
    try:
        yield
    except Exception as error:
        log.warning("%s cannot be drawn: %s: %s", name, type(error).__name__, error)
        log.debug("traceback", exc_info=True)


def figures_of_trials(trials: Sequence[Trial], *, test: bool) -> dict[Trial, Figures]:
    """Return the figures of those trials that get any.

    With `trainer.figures=best` that is a trial by itself which is tested, such as the winner of a
    study. Without `test` figures leave the test split alone.
    """
    wanted = trials[0].setup.trainer.figures
    drawn = wanted is True or (wanted == "best" and len(trials) == 1 and test)
    split: Split = "test" if test else "validation"
    found: dict[Trial, Figures] = {}
    for trial in trials if drawn else ():
        every = max(trial.setup.periods.evaluations // DURING, 1)
        if is_first():
            view = view_of(trial.setup, trial.hparams, trial.directory, split)
            found[trial] = RunFigures(view, trial.directory, trial.trackers, every)
        else:
            found[trial] = Figures(getattr(trial.setup.objective, "kind", ""), every)
    return found


def view_of(
    setup: Setup, hparams: Mapping[str, Any], directory: Path, split: Split = "test"
) -> TrialView:
    """Return a trial as its figures see it.

    Args:
      directory: its run folder.
      split: the one that figures of the best weights show.

    Raises:
      UserError: `objective.classifier` is not the folder of a run, or does not go with the images.
    """
    classifier: Callable[[], Classifier] | None = None
    if (folder := setup.config["objective"].get("classifier")) is not None:
        channels = setup.experiment.input_shape[-1]
        classifier = functools.partial(open_classifier, Path(folder), channels)
        classifier()  # says at once if it cannot be used, not after the first epoch

    def examples(split: Split, count: int) -> Batch:
        source = getattr(setup.splits, split)
        count = min(count, len(source))
        batch = next(iter(evaluation_batches(source, count)))
        return {name: array[:count] for name, array in batch.items() if name != "mask"}

    return TrialView(
        experiment=setup.experiment,
        hparams=hparams,
        config=setup.config,
        class_names=tuple(setup.splits.class_names),
        history=lambda: read_history(directory / METRICS),
        examples=examples,
        batches=lambda split: setup.evaluator(split, setup.alone).batches(),
        split=split,
        classifier=classifier,
        found=setup.splits.found,
    )


@functools.lru_cache(maxsize=4)
def open_classifier(folder: Path, channels: int) -> Classifier:
    """Open the classifier of a run folder, for images of so many channels.

    Its metrics are `frechet`, the Fréchet distance between the features of generated and real
    images, not the Inception FID; `confidence`, the mean probability of the likeliest class; and
    `rarest_class`, the share of the rarest class, 1/C if all are equally frequent and 0 if one is
    missing. The features are the inputs of its last layer, `output`; of LeNet-5 the 84 units of F6.

    Raises:
      UserError: it is no run, or no such classifier.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(saved_config(folder, []), resolve=True)
    assert isinstance(config, dict)
    plain = settled(with_found({str(key): value for key, value in config.items()}, folder))
    run = Restored(plain, folder, Trackers([]))
    experiment, where = run.setup.experiment, f"objective.classifier={folder}"
    if experiment.input_shape[-1] != channels:
        own = experiment.input_shape[-1]
        raise UserError(f"{where} was trained on images of {own} channels")
    if "output" not in run.weights[0]:
        raise UserError(f"{where}: it must have a last layer `output`")
    mean, std = (np.float32(getattr(experiment.pipeline, name)) for name in ("mean", "std"))

    @jax.jit
    def look(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = resize((images - mean) / std, experiment.input_shape[:2])
        model: Any = experiment.trained_model(run.hparams, *run.weights)
        output, model.output = model.output, Function(lambda features: features)
        features = model(x)
        return features, jax.nn.softmax(output(features))

    def look_at_all(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, len(images), SCORED)
        parts = [look(jnp.asarray(images[s : s + SCORED], jnp.float32)) for s in starts]
        features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
        return features, probabilities

    def score(generated: np.ndarray, real: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        features, probabilities = look_at_all(generated)
        counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
        metrics = {
            "frechet": frechet_distance(features, look_at_all(real)[0]),
            "confidence": float(probabilities.max(axis=1).mean()),
            "rarest_class": float(counts.min() / counts.sum()),
        }
        return metrics, counts

    return Classifier(run.setup.splits.class_names, score)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features [n, d], each taken as normal.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)

    References:
      Dowson & Landau 1982. With features of the Inception network it is the FID of Heusel et al.
      2017; with others its values are on another scale and cannot be compared with published ones.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    covariance_a, covariance_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # tr (Σ₁ Σ₂)^½ is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    between = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(between + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)
