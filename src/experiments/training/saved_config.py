"""The config of an earlier run, also of one that an older version of the configs was made for."""

import logging
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from experiments.errors import UserError, suggest
from experiments.training.saved import split_source

log = logging.getLogger(__name__)

# keys of the command, not of the run that it names
OWN = ("mode", "resume", "checkpoint", "cluster", "nodes", "sample")


def saved_config(source: Path, overrides: list[str]) -> DictConfig:
    """The config that a run was started with, and over it the values given now.

    Raises:
        UserError: `source` is no run, or an override is not the value of a key of its config.
    """
    folder, _ = split_source(source)
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    if (today := _composed_today(folder)) is not None:
        config = _brought_up_to_date(config, today)
    if config.name is None:
        config.name = folder.resolve().name
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.partition(".")[0] in OWN:
            continue
        current = OmegaConf.select(config, key, default=OWN)
        if current is OWN or isinstance(current, DictConfig):
            where, problem = f"{key}={value}: the config of {folder}", "keeps its choices"
            if current is OWN:
                parent, _, name = key.rpartition(".")
                around = OmegaConf.select(config, parent) if parent else config
                beside = map(str, around) if isinstance(around, DictConfig) else ()
                problem = f"has no such value{suggest(name, beside)}"
            raise UserError(
                f"{where} {problem}; single values can be changed, such as trainer.epochs=20"
            )
        OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
    return config


def _composed_today(folder: Path) -> DictConfig | None:
    """What the group choices of a run compose with the configs as they are now, if it says them."""
    path = folder / ".hydra" / "hydra.yaml"
    if not path.is_file():
        return None
    choices = OmegaConf.load(path).hydra.runtime.choices
    groups = {g: c for g, c in choices.items() if not str(g).startswith("hydra/")}
    # these two only change choices and values, and all of them have been saved
    overrides = [f"{g}={c}" for g, c in groups.items() if c and g not in ("experiment", "debug")]
    return compose("config", overrides)


def _brought_up_to_date(config: DictConfig, today: DictConfig) -> DictConfig:
    """A saved config with today's values for keys that are new and without those that are gone."""
    gone: list[str] = []

    def merge(saved: dict, now: dict, path: str) -> dict:
        merged: dict[Any, Any] = dict(now)
        for key, value in saved.items():
            if key not in now:
                gone.append(f"{path}{key}={value}")
            elif isinstance(value, dict) and isinstance(now[key], dict):
                merged[key] = merge(value, now[key], f"{path}{key}.")
            else:
                merged[key] = value
        return merged

    plain = [OmegaConf.to_container(c, resolve=False) for c in (config, today)]
    assert isinstance(plain[0], dict)
    assert isinstance(plain[1], dict)
    merged = OmegaConf.create(merge(plain[0], plain[1], ""))
    if gone:
        log.warning("keys of this run that no longer exist are left out: %s", ", ".join(gone))
    return merged
