"""What `mode=inspect` shows of a trained trial: figures, and the numbers that belong to them.

Which parts there are follows from the kind of its objective and from its model; what does not
apply is left out.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from experiments.core.diagnostics import attribution as inside
from experiments.core.diagnostics.embeddings import principal_components, t_sne
from experiments.core.diagnostics.examples import Mistake, classify
from experiments.core.diagnostics.layers import PREFIX, diagnose
from experiments.core.experiment import State
from experiments.core.rng import root_key
from experiments.data.dataset import Batch
from experiments.viz import image_figures as images
from experiments.viz import inspection_figures as figures
from experiments.viz.classification_figures import sample_predictions
from experiments.viz.figures import plain
from experiments.viz.trial_view import Predictions, TrialView, Weights, figures_of

log = logging.getLogger(__name__)

MISTAKES = 16  # most that are shown
EMBEDDED = 1000  # most examples of a map

Figures = dict[str, Callable[[], Figure]]
Found = tuple[Figures, dict[str, Any]]  # figures by name, and numbers in the form of JSON


def layers(trial: TrialView, state: State, batch: Batch) -> Found:
    """Return what goes on in each layer at the next step of a training.

    Args:
      state: that the step starts from.
      batch: of training examples, as stored.
    """
    experiment, key = trial.experiment, root_key(trial.config["seed"])
    look = jax.jit(functools.partial(diagnose, experiment, hparams={}))
    scalars, histograms = jax.device_get(look(state, batch, key=key))
    found: dict[str, dict[str, float]] = {}
    for name, value in scalars.items():
        layer, _, quantity = name.removeprefix(f"{PREFIX}/").rpartition("/")
        found.setdefault(layer, {})[quantity] = float(value)
    called = inside.calls(experiment, experiment.weights(state), batch, inside.has_layers)
    found = {name: found[name] for name in inside.in_order(found, called)}
    outputs = {name: histograms.get(f"{PREFIX}/{name}/outputs") for name in found}
    outputs = {name: histogram for name, histogram in outputs.items() if histogram is not None}
    drawn: Figures = {"norms": lambda: figures.norms(found)}
    if outputs:
        drawn["activations"] = lambda: figures.activations(outputs, found)
    return drawn, {"layers": found}


def pictures(trial: TrialView, weights: Weights, batch: Batch, titles: Sequence[str]) -> Found:
    """Return the filters of a network and what it sees in pictures, of a classifier also where.

    Args:
      batch: of a few pictures, as stored.
      titles: what they are called.
    """
    experiment = trial.experiment
    if len(experiment.input_shape) != 3 or "image" not in batch:
        return {}, {}
    drawn: Figures = {}
    if (kernels := inside.first_filters(experiment, weights, batch)) is not None:
        drawn["filters"] = lambda: images.filters(kernels)
    if maps := inside.feature_maps(experiment, weights, batch):
        first = {name: values[0] for name, values in maps.items()}
        seen = np.asarray(inside.prepared(experiment, batch)["image"][0], np.float32)
        drawn["feature_maps"] = lambda: figures.feature_maps(seen, first)
    if trial.kind != "classification":
        return drawn, {}
    found = inside.attribute(experiment, weights, batch)
    rows = [
        {"example": title, "predicted": trial.labels[k], "probability": float(values[k])}
        for title, k, values in zip(
            titles, found.predictions.argmax(axis=-1), found.predictions, strict=True
        )
    ]
    said = [
        f"{plain(row['example'])}\npredicted {plain(row['predicted'])}, {row['probability']:.0%}"
        for row in rows
    ]
    drawn["attribution"] = lambda: figures.attribution(found, said)
    return drawn, {"attribution": {"class_map_of": found.layer, "examples": rows}}


def examples(trial: TrialView, weights: Weights, predictions: Callable[[], Predictions]) -> Found:
    """Return the examples of a split as points in the plane, mistakes and reconstructions.

    Args:
      predictions: makes those for the split.
    """
    if trial.kind == "classification":
        found = classify(
            trial.experiment,
            weights,
            trial.batches(trial.split),
            mistakes=MISTAKES,
            features=EMBEDDED,
        )
        drawn, numbers = _mistakes(trial, found.mistakes)
        points, labels, what = found.features, found.labels, "features of the last layer"
    elif hasattr(trial.objective, "codes"):
        batch = trial.examples(trial.split, EMBEDDED)
        points = trial.apply(_codes, weights, inside.prepared(trial.experiment, batch))
        labels, what = batch.get("label", np.zeros(len(points), int)), "codes"
        of_kind = figures_of(trial.kind).final(trial, weights, predictions()).figures
        drawn = {name: of_kind[name] for name in ("reconstructions",) if name in of_kind}
        numbers = {}
    else:
        return {}, {}
    points = points.reshape(len(points), -1)
    mapped, embedding = _embedding(trial, points, labels, what)
    return drawn | mapped, numbers | embedding


def time(trial: TrialView, weights: Weights) -> Found:
    """Return the gradient of the loss by the input of each step of a sequence."""
    batch = next(iter(trial.batches(trial.split)))
    lengths = inside.gradient_through_time(trial.experiment, weights, batch)
    if lengths is None:
        return {}, {}
    drawn: Figures = {"gradient_through_time": lambda: figures.through_time(lengths)}
    return drawn, {"gradient_through_time": lengths.tolist()}


def _mistakes(trial: TrialView, found: Sequence[Mistake]) -> Found:
    names = trial.labels
    rows = [
        {
            "index": int(one.index),
            "true": names[one.label],
            "predicted": names[one.predicted],
            "probability_of_true": float(one.predictions[one.label]),
            "loss": float(one.loss),
        }
        for one in found
    ]
    drawn: Figures = {}
    if found and found[0].example.dtype == np.uint8 and found[0].example.ndim == 3:
        shown, labels, predictions = (
            np.stack([np.asarray(getattr(one, name)) for one in found])
            for name in ("example", "label", "predictions")
        )
        arguments = shown / 255, labels, predictions, names
        drawn["mistakes"] = lambda: sample_predictions(*arguments)
    return drawn, {"mistakes": rows}


def _embedding(trial: TrialView, points: np.ndarray, labels: np.ndarray, what: str) -> Found:
    names = trial.labels
    numbers: dict[str, Any] = {"of": what, "examples": len(points), "dimensions": points.shape[1]}
    numbers["share_of_variance"] = principal_components(points)[1].tolist()
    drawn: Figures = {"pca": lambda: images.latent_map(points, labels, names, what)}
    if len(points) > 3 and points.shape[1] > 2:
        try:
            near = t_sne(points, trial.config["seed"])
        except ImportError:
            log.warning(
                "t-SNE is left out, as scikit-learn is not installed: "
                "pip install 'experiments[inspect]'"
            )
        else:
            title = f"t-SNE of the {what}"
            drawn["t_sne"] = lambda: images.map_of(near, labels, names, title, None)
    return drawn, {"embedding": numbers}


def _codes(objective: Any, model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    return objective.codes(model, batch, nnx.Rngs(sample=0))
