"""From the config group `logger` to trackers: one choice of it, or several beside each other.

With `logger=[wandb,tensorboard]` the keys of W&B are those of the group, `logger.project`; those of
any other tracker lie below its name, `logger.tensorboard.flush_seconds`.
"""

from collections.abc import Mapping
from typing import Any

from experiments.core.config import build
from experiments.tracking.apart import Apart
from experiments.tracking.tracker import Tracker
from experiments.training.helper import helper


def nodes(logger: Mapping[str, Any]) -> dict[str, Any]:
    """The config of each tracker by its path."""
    beside = {k: v for k, v in logger.items() if isinstance(v, Mapping) and "_target_" in v}
    own = {k: v for k, v in logger.items() if k not in beside}
    found = {"logger": own} if "_target_" in own else {}
    return found | {f"logger.{name}": node for name, node in beside.items()}


def warm_up(logger: Mapping[str, Any]) -> None:
    """Has the process beside this one import what the trackers need that a config asks for."""
    for tracker in trackers(logger):
        if tracker.slow_to_start:
            helper().submit("tracking", tracker.warm_up)


def trackers(logger: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a config asks for, themselves."""
    return [build(node) for node in nodes(logger).values()]


def chosen(logger: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a config asks for, as a run uses them."""
    return [Apart(t) if t.slow_to_start else t for t in trackers(logger)]
