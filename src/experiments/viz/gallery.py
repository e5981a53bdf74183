"""What there is to see of a run, by the kind of its objective: a module a kind.

An objective names its module by the attribute `gallery`; the module's `Gallery` draws. Its pictures
are made at the end of a run and by `mode=figures` (`final`), and, where the objective's
`gallery_during` says so, during training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.training.evaluation import Predictions
    from experiments.training.session import Session
    from experiments.viz.drawing import Drawing


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
