"""Holding a whole config against what it is for, before anything is read or compiled."""

import functools
import pickle
from typing import Any

from experiments.core.config import build, check, leaves, mismatch
from experiments.errors import UserError
from experiments.tracking.choice import nodes
from experiments.types import Seed

MISSING = "???"  # OmegaConf's word for a value that is still to be given


def check_config(config: dict[str, Any]) -> None:
    """Raises `UserError` for the first value that no run would take."""
    missing = sorted(path for path, value in leaves(config) if value == MISSING)
    if missing:
        raise UserError(f"{missing[0]} has no value; say {missing[0]}=...")
    if complaint := mismatch(config["seed"], Seed):
        raise UserError(f"seed={config['seed']}: must be {complaint}")
    for key, value, hint in (
        ("model.pretrained", config["model"]["pretrained"], str | None),
        ("freeze", config["freeze"], str | list[str] | None),
    ):
        if complaint := mismatch(value, hint):
            raise UserError(f"{key}={value}: must be {complaint}")
    groups = {group: node for group, node in config.items() if isinstance(node, dict)}
    loggers = nodes(groups.pop("logger"))
    for name, node in (groups | loggers).items():
        _check_group(pickle.dumps({name: node}))
    for group in ("optim", "discriminator_optim"):
        build(config.get(group))  # checks the arguments of its rule


@functools.lru_cache(maxsize=256)
def _check_group(pickled: bytes) -> None:
    """`check` of a group; most trials of a study share most of theirs."""
    check(pickle.loads(pickled))
