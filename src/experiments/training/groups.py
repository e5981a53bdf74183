"""Which trials can be trained side by side, and what each of them goes on from."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.errors import UserError
from experiments.tracking.jsonl import METRICS, SUMMARY, read_mapping
from experiments.training.saving.checkpoints import Saved
from experiments.training.saving.trials import discard_after, load, saved_step
from experiments.training.trial import SIZES, Trial

log = logging.getLogger(__name__)


def groups(
    trials: Sequence[Trial], most: int | None, *, resume: bool, test: bool
) -> Iterator[tuple[list[Trial], list[Saved] | None]]:
    """Yield trials that can be trained side by side, and what they go on from, or None.

    They are of one static configuration and at one step; a stream has one order for all. Trials
    that have nothing left to do are finished and belong to no group.

    Args:
      most: most trials of a group (None: no limit).
      resume: go on from what was saved in the folders of the trials.
      test: whether the test is something that may be left to do.
    """
    left: dict[Trial, Saved | None] = {}
    for trial in trials:
        if resume and (done := finished_before(trial, test)):
            log.info("%s has finished: there is nothing left to do", trial.directory)
            log.info("it has trained %s goes on", longer(trial, done["step"]))
            trial.summary = done
            trial.trackers.finish(done, done["status"])
        else:
            left[trial] = None
    resumed = [trial for trial in left if resume and saved_step(trial.directory)]
    shapes = [(t.setup.shapes, t.setup.experiment.weights(t.setup.shapes)) for t in resumed]
    left |= zip(resumed, load([t.directory for t in resumed], shapes), strict=True)
    found: dict[tuple, list[tuple[Trial, Saved | None]]] = {}
    for trial, saved in left.items():
        setup, step = trial.setup, saved.step if saved else 0
        if saved and step > setup.experiment.total_steps:
            trial.check_units(saved.progress)  # which may be why it seems to be beyond its length
            raise UserError(f"{trial.directory} has trained {longer(trial, step)} goes on")
        if saved:
            discard_after(trial.directory, step)
        elif resume and (trial.directory / METRICS).exists():
            trial.warn("it ended before its first checkpoint: it begins again from step 0")
        order = trial.shuffle_seed if setup.streamed else None
        found.setdefault((setup.static_key, step, order), []).append((trial, saved))
    for group in found.values():
        for first in range(0, len(group), most or len(group)):
            chunk = group[first : first + (most or len(group))]
            whole = [saved for _, saved in chunk if saved is not None]
            yield [trial for trial, _ in chunk], whole or None


def longer(trial: Trial, step: int) -> str:
    """Return how far a run is, and the value of its config beyond which it is longer."""
    trainer = trial.config["trainer"]
    if trainer["steps"] is not None:
        return f"for {step} steps: trainer.steps= above {step}"
    epochs = step / trial.setup.experiment.steps_per_epoch
    return f"for {epochs:g} epochs: trainer.epochs= above {epochs:g}"


def finished_before(trial: Trial, test: bool) -> dict[str, Any] | None:
    """Return the summary in a trial's folder if there is nothing left to do."""
    path, advice = trial.directory / SUMMARY, "delete it: the run, resumed, writes a new one"
    summary = read_mapping(path, advice=advice) if path.exists() else {}
    total = trial.setup.experiment.total_steps
    if not all(isinstance(summary.get(name, 0), int) for name in ("step", *SIZES)):
        raise UserError(f"{path} is damaged\n{advice}")
    trial.check_units(summary)
    done = summary.get("status") == "finished" and summary.get("step", 0) >= total
    done = done and (not test or any(name.startswith("test/") for name in summary))
    return summary if done else None
