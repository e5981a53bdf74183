"""From the config group `logger` to trackers: one choice of it, or several beside each other.

With `logger=[wandb,tensorboard]` the keys of W&B are those of the group, `logger.project`; those of
any other tracker lie below its name, `logger.tensorboard.flush_seconds`.
"""

from collections.abc import Mapping
from typing import Any

from experiments.config import build
from experiments.tracking.behind import Behind
from experiments.tracking.tracker import Tracker


def nodes(logger: Mapping[str, Any]) -> dict[str, Any]:
    """The config of each tracker by its path."""
    beside = {k: v for k, v in logger.items() if isinstance(v, Mapping) and "_target_" in v}
    own = {k: v for k, v in logger.items() if k not in beside}
    found = {"logger": own} if "_target_" in own else {}
    return found | {f"logger.{name}": node for name, node in beside.items()}


def chosen(logger: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that a config asks for."""
    trackers = [build(node) for node in nodes(logger).values()]
    return [Behind(tracker) if tracker.slow_to_start else tracker for tracker in trackers]
