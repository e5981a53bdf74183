"""The trackers that the config group `logger` asks for: one choice of it, or several together.

With `logger=[wandb,tensorboard]` the keys of W&B are those of the group, `logger.project`; those of
any other tracker lie below its name, `logger.tensorboard.flush_seconds`.
"""

from collections.abc import Mapping
from typing import Any

from experiments.core.config import build, tracker_nodes
from experiments.tracking.background import Background
from experiments.tracking.tracker import Tracker


def chosen(logger: Mapping[str, Any]) -> list[Tracker]:
    """Return the trackers of a config, slow ones in the background."""
    trackers = [build(node) for node in tracker_nodes(logger).values()]
    return [Background(t) if t.slow_to_start else t for t in trackers]
