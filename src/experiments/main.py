"""A run from its composed config to its exit code."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.cli import EXIT_CODES, Exit
from experiments.config import build, check, mismatch
from experiments.errors import UserError
from experiments.saved import saved_config
from experiments.tracking.jsonl import JsonLines, write_json
from experiments.tracking.terminal import Terminal, number
from experiments.tracking.tracker import Trackers
from experiments.training import loop
from experiments.training.cache import use_compilation_cache
from experiments.training.evaluate import evaluate
from experiments.training.lock import exclusive
from experiments.training.session import open_session
from experiments.training.signals import StopRequest
from experiments.types import Mode, Seed


def run(config: DictConfig) -> None:
    """What `python run.py` does; raises `Exit` unless the run finished."""
    mode = config.mode
    if complaint := mismatch(mode, Mode):
        raise UserError(f"mode={mode}: must be {complaint}")
    directory = Path(HydraConfig.get().runtime.output_dir)
    source = config.resume or config.checkpoint
    if source is not None:
        overrides = list(HydraConfig.get().overrides.task)
        config = saved_config(Path(source), overrides)
    elif mode != "train":
        raise UserError(f"mode={mode} needs checkpoint=<run folder>")
    plain = as_plain(config, directory)
    check_config(plain)
    use_compilation_cache(plain["trainer"]["compilation_cache"])
    if mode == "evaluate":
        evaluation(plain, Path(source), directory)
    else:
        training(plain, directory, resume=source is not None)


def training(config: dict[str, Any], directory: Path, *, resume: bool) -> None:
    """Trains, and ends with the exit code of the run's status."""
    trackers = Trackers([JsonLines(), Terminal(), build(config["logger"])])
    with StopRequest() as stop, exclusive(directory):
        trackers.status("reading data")
        summary: dict[str, Any] = {}
        try:
            summary = loop.fit(open_session(config), directory, trackers, stop, resume=resume)
        finally:
            if not summary:
                trackers.finish({}, "failed")
    if code := EXIT_CODES[summary["status"]]:
        raise Exit(code)


def evaluation(config: dict[str, Any], source: Path, directory: Path) -> None:
    """Evaluates the best weights of a run on its validation and test splits."""
    terminal = Terminal()
    terminal.status("reading data")
    summary = evaluate(open_session(config), source)
    write_json(directory / "summary.json", summary)
    for split in ("val", "test"):
        values = {k: v for k, v in summary.items() if k.startswith(f"{split}/")}
        print("   ".join(f"{name} {number(value)}" for name, value in values.items()))


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
    if complaint := mismatch(config["seed"], Seed):
        raise UserError(f"seed={config['seed']}: must be {complaint}")
    check({group: node for group, node in config.items() if isinstance(node, dict)})
    build(config["optim"])  # checks the arguments of its rule
