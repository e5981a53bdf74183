"""A run from its composed config to its exit code."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.cli import EXIT_CODES, Exit
from experiments.config import build, check
from experiments.errors import UserError
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.terminal import Terminal
from experiments.tracking.tracker import Trackers
from experiments.training import loop
from experiments.training.cache import use_compilation_cache
from experiments.training.session import open_session
from experiments.training.signals import StopRequest

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """What `python run.py` does; raises `Exit` unless the run finished."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    plain = as_plain(config, directory)
    check_config(plain)
    use_compilation_cache(plain["trainer"]["compilation_cache"])
    trackers = Trackers([JsonLines(), Terminal(), build(plain["logger"])])
    with StopRequest() as stop:
        trackers.status("reading data")
        session = open_session(plain)
        summary = loop.fit(session, directory, trackers, stop)
    if code := EXIT_CODES[summary["status"]]:
        raise Exit(code)


def as_plain(config: DictConfig, directory: Path) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars; an unnamed run is called after its folder."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} has no value; say {missing[0]}=...")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()} | {"name": plain["name"] or directory.name}


def check_config(config: dict[str, Any]) -> None:
    """Holds every value of a config against what it is for, before anything is read or compiled."""
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number from 0 to 4294967295")
    check({group: node for group, node in config.items() if isinstance(node, dict)})
    build(config["optim"])  # checks the arguments of its rule
