"""The search's own keys on a command line, apart from overrides of the config."""

import datetime
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.core.config import mismatch
from experiments.errors import UserError
from experiments.types import PositiveInt

Options = dict[str, Any]

SEARCH_KEYS = (
    *("n_trials", "method", "rounds", "seeds", "storage", "heartbeat", "attempts", "lanes"),
    *("study", "workers", "cluster", "name", "engine"),
)
"""Keys of a command line that are the search's own, in `sweep.py` and after `run.py -m`."""


def divide(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """(the search's own keys, overrides of the config); `cluster.<key>` joins `cluster`."""
    options: Options = {}
    overrides = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if (
            not equals
            or key.partition(".")[0] not in SEARCH_KEYS
            or ("." in key and key[:8] != "cluster.")
        ):
            overrides.append(argument)
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{argument}: {text!r} cannot be read") from error
        if key == "cluster":
            options.setdefault("cluster", {})["name"] = value
        elif key.startswith("cluster."):
            options.setdefault("cluster", {})[key.removeprefix("cluster.")] = value
        else:
            options[key] = value
    return options, overrides


def study_folder(options: Options, name: str) -> Path:
    """Where a new study goes: where `study` says, or a new folder below `runs`."""
    if "study" in options:
        return Path(str(options["study"])).absolute()
    now = datetime.datetime.now()
    unique = uuid.uuid4().hex[:6]
    return Path("runs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{name}_{unique}").absolute()


def worker_count(options: Options) -> int:
    """How many workers are to run."""
    count = options.get("workers", 1)
    if complaint := mismatch(count, PositiveInt):
        raise UserError(f"workers={count}: must be {complaint}")
    return count
