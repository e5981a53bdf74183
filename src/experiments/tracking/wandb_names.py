"""How W&B calls a run and its config, and which names it refuses."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments import errors
from experiments.errors import UserError

SECRET = re.compile(rf"{errors.SECRET}$", re.IGNORECASE)
LONGEST, LONGEST_TAG = 128, 64  # characters of a project or a name, and of a tag
IN_NO_PROJECT, IN_NO_ID = "/\\#?%:", ":;,#?/'"


def project_of(configured: str | None) -> str:
    """Return the project that a config asks for, or else the environment."""
    return configured or os.environ.get("WANDB_PROJECT") or "experiments"


def check_names(project: str, name: str | None, tags: Sequence[str]) -> None:
    """Check what W&B is known to refuse, which it does offline when all is over.

    Raises:
        UserError: it would refuse a name, or the id of a run in the environment.
    """
    names = {"project": (project, IN_NO_PROJECT), "name": (name or "", "")}
    names |= {"WANDB_RUN_ID": (os.environ.get("WANDB_RUN_ID", ""), IN_NO_ID)}
    for what, (value, forbidden) in names.items():
        if found := [character for character in forbidden if character in value]:
            raise UserError(f"W&B takes no {' '.join(found)} in its {what}, as in {value!r}")
        if len(value) > LONGEST:
            start = f"{value[:20]!r}..., which has {len(value)}"
            raise UserError(f"W&B takes at most {LONGEST} characters in its {what}, not {start}")
    for tag in tags:
        if not 1 <= len(tag) <= LONGEST_TAG:
            start = f"{tag[:20]!r}..., which has {len(tag)}"
            raise UserError(f"W&B takes 1 to {LONGEST_TAG} characters in a tag, not {start}")


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested mappings without anything secret."""
    shown = {str(key): value for key, value in config.items() if not SECRET.search(str(key))}
    return {k: public(v) if isinstance(v, Mapping) else v for k, v in shown.items()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, `optim.learning_rate`, without anything secret."""
    flat: dict[str, Any] = {}
    for key, value in public(config).items():
        inside = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return flat


def tags_of(config: Mapping[str, Any]) -> list[str]:
    """Return the objective, model and data of a run, such as Classification, LeNet5, mnist."""
    classes = [config.get(group, {}).get("_target_") for group in ("objective", "model")]
    names = [target.rpartition(".")[2] for target in classes if target]
    tags = [*names, *filter(None, [config.get("data", {}).get("name")])]
    return [tag[:LONGEST_TAG] for tag in tags]


def note_of(directory: Path) -> str | None:
    """Return the overrides of the run in `directory`, without anything secret; None without any."""
    path = directory / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(path.read_text()) if path.is_file() else None
    said = [o for o in overrides or [] if not SECRET.search(str(o).partition("=")[0])]
    return " ".join(said) or None
