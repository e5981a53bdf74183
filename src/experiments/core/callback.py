"""The protocol of what follows a run while it trains: callbacks of the user's own, and trackers.

    from experiments import Callback, StopTraining

    class GoodEnough(Callback):
        def on_epoch_end(self, step, weights, metrics, predictions):
            if metrics["val/accuracy"] > 0.95:
                raise StopTraining("the accuracy is good enough")

A config names them, `callbacks: {good_enough: {_target_: mine.GoodEnough}}`. Each trial has
callbacks of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FOLLOWERS = ("logger", "callbacks")  # the groups of a config that hold some


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that are known before its first step.

    Args:
        directory: the run folder; it exists.
        name: for people, such as `lenet5_mnist_ab12cd`.
        config: the composed config as plain dicts, resolved.
        total_steps, steps_per_epoch, batch_size, parameters: sizes of the training and the model.
        start_step: the step of the checkpoint that the run resumes from; None for a new run.
        class_names: the names of the classes; empty if the data name none.
        units: in what metrics are that need to say so, such as bits, by name without their split.
        test_note: what is to be known of the test examples; empty if nothing is.
    """

    directory: Path
    name: str
    config: dict
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    parameters: int
    start_step: int | None = None
    class_names: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    test_note: str = ""


class ValidationPredictions:
    """The predictions for the validation split at an evaluation, made when they are first read.

    Args:
        make: returns both attributes.

    Attributes:
        examples: the arrays of the split as stored, such as `image` and `label`, N rows each.
        outputs: what the objective predicts for them, such as probabilities [N, classes].
    """

    def __init__(self, make: Callable[[], tuple[dict[str, np.ndarray], Any]]):
        self._make = make

    @functools.cached_property
    def _made(self) -> tuple[dict[str, np.ndarray], Any]:
        return self._make()

    @property
    def examples(self) -> dict[str, np.ndarray]:
        return self._made[0]

    @property
    def outputs(self) -> Any:
        return self._made[1]


class StopTraining(Exception):  # noqa: N818 - a request, as StopIteration
    """Raised by a callback, ends its run after the next evaluation, as early stopping does.

    Its text is the reason, which is logged.
    """


class Callback:
    """Follows one run. Subclasses define those methods that they use; here none does anything.

    An error of a callback ends no run: it is logged once with the name of the callback, which is
    then finished and no longer called. The traceback is in `run.log`, and with HYDRA_FULL_ERROR=1
    on the terminal. `StopTraining` asks for the end of the run.
    """

    essential = False
    """True of a callback without which the run is worth nothing: an error of it ends the run."""

    @property
    def may_stop(self) -> bool:
        """Whether it may ask the run to stop, so that its lines are logged as an epoch ends."""
        return self.sees_epochs

    @property
    def sees_epochs(self) -> bool:
        """Whether it defines `on_epoch_end`, for which weights leave the device."""
        return type(self).on_epoch_end is not Callback.on_epoch_end

    def start(self, run: RunInfo) -> None:
        """Begin, before the first step, also where a run goes on. A `UserError` ends the run."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a line of metrics, plain Python floats; steps never decrease."""

    def on_epoch_end(
        self,
        step: int,
        weights: dict[str, np.ndarray],
        metrics: dict[str, float],
        predictions: ValidationPredictions,
    ) -> None:
        """Take an epoch, or `trainer.eval_every` steps, that has been validated; the run waits.

        Args:
            step: the steps done.
            weights: copies of those that were validated, and of batch statistics, by dotted name.
            metrics: the epoch's line, such as `epoch`, `train/loss` and `val/accuracy`.
            predictions: by these weights, for the validation split.
        """

    def figure(self, step: int, name: str, path: Path) -> None:
        """Take a picture, a PNG file, or an animation, a GIF file."""

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        """End with `finished`, `stopped_early`, `interrupted`, `diverged` or `failed`."""


def callback_nodes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config node of each tracker and each callback, by its dotted path.

    The keys of the first tracker are those of the group `logger` itself, `logger.project`; each
    other one has a node of its own in it, `logger.tensorboard`, and so has every callback.

    Raises:
        UserError: a callback names nothing to call.
    """
    logger, callbacks = config["logger"], config.get("callbacks") or {}
    others = {k: v for k, v in logger.items() if isinstance(v, Mapping) and "_target_" in v}
    first = {k: v for k, v in logger.items() if k not in others}
    for name, node in callbacks.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"callbacks.{name}: must name a class: {{_target_: module.Class}}")
    found: dict[str, Any] = {"logger": first} if "_target_" in first else {}
    found |= {f"logger.{name}": node for name, node in others.items()}
    return found | {f"callbacks.{name}": node for name, node in callbacks.items()}
