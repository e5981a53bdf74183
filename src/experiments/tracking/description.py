"""The description of a run for a tracker that shows many: flat values, tags and a note."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.tracking.tracker import RunInfo

SECRET = re.compile(r"(api_?key|(access|auth)_?token|password|secret)$", re.IGNORECASE)


def values(run: RunInfo) -> dict[str, Any]:
    """Return the config as flat dotted keys and, below `run.`, the sizes of the run."""
    names = ("parameters", "total_steps", "steps_per_epoch", "batch_size")
    return flatten(run.config) | {f"run.{name}": getattr(run, name) for name in names}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, `optim.learning_rate`, without anything secret.

    W&B filters and plots top-level keys, and a sweep names its parameters this way.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if SECRET.search(str(key)):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def tags(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the objective, model and data of a run, such as Classification, LeNet5, mnist."""
    classes = [config.get(group, {}).get("_target_") for group in ("objective", "model")]
    names = [target.rpartition(".")[2] for target in classes if target]
    return (*names, *filter(None, [config.get("data", {}).get("name")]))


def note(directory: Path) -> str | None:
    """Return the overrides of the run in `directory`, without anything secret; None without any."""
    path = directory / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(path.read_text()) if path.is_file() else None
    said = [o for o in overrides or [] if not SECRET.search(str(o).partition("=")[0])]
    return " ".join(said) or None
