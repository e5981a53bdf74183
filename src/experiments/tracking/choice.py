"""From the config group `logger` to trackers: one choice of it, or several beside each other.

With `logger=[wandb,tensorboard]` the keys of W&B are those of the group, `logger.project`; those of
any other tracker lie below its name, `logger.tensorboard.flush_seconds`.
"""

from collections.abc import Mapping
from typing import Any

from experiments.core.config import build, tracker_nodes
from experiments.tracking.apart import Apart
from experiments.tracking.tracker import Tracker
from experiments.training.helper import helper


def warm_up(logger: Mapping[str, Any]) -> None:
    """Has the process beside this one import what the trackers need that a config asks for."""
    for tracker in trackers(logger):
        if tracker.slow_to_start:
            helper().submit("tracking", tracker.warm_up)


def trackers(logger: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a config asks for, themselves."""
    return [build(node) for node in tracker_nodes(logger).values()]


def chosen(logger: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a config asks for, as a run uses them."""
    return [Apart(t) if t.slow_to_start else t for t in trackers(logger)]
