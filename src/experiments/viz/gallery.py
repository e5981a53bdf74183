"""The figures of a run, by the kind of its objective: a module with a class `Gallery` per kind.

They are drawn at the end of a run and by `mode=figures` (`final`), and those of some kinds during
training too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.training.evaluation import Predictions
    from experiments.training.session import Session
    from experiments.viz.drawing import Drawing


MODULES = {
    "adversarial": "experiments.viz.gallery_adversarial",
    "autoencoding": "experiments.viz.gallery_autoencoding",
    "classification": "experiments.viz.gallery_classification",
    "labelling": "experiments.viz.gallery_labelling",
    "language": "experiments.viz.gallery_language",
    "regression": "experiments.viz.gallery_regression",
    "variational": "experiments.viz.gallery_variational",
}
DRAWN_DURING_TRAINING = {"adversarial", "autoencoding", "language", "variational"}


class Gallery:
    """The pictures of one run; subclasses draw.

    Args:
      session: the run's config, data and pure functions.
      directory: its folder, with `metrics.jsonl`.
    """

    animated: tuple[str, ...] = ()
    """Those pictures of `during` that are also shown as an animation in the end."""

    def __init__(self, session: Session, directory: Path):
        self.session, self.directory = session, directory

    def during(self, weights: tuple[Any, Any]) -> dict[str, Drawing]:
        """Pictures of the (params, model_state) after an epoch, by name."""
        return {}

    def final(self, weights: tuple[Any, Any], predictions: Predictions) -> dict[str, Drawing]:
        """Pictures of the best weights, by name; `predictions` are theirs on the test split."""
        raise NotImplementedError

    def measure(self, weights: tuple[Any, Any], split: str) -> dict[str, float]:
        """What is said of many outputs together, by name; `split`: "validation" or "test"."""
        return {}
