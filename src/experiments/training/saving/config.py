"""The config of an earlier run, as a new command and today's version take it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.core.names import locate
from experiments.core.trust import vet, vet_objects
from experiments.errors import UserError, suggest
from experiments.tracking.jsonl import read_mapping
from experiments.training.run_folder import COMMAND, FOUND, HYDRA, split_source

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra and OmegaConf are imported where configs are read: the workers of a search need neither.

log = logging.getLogger(__name__)

PACKAGE = __name__.partition(".")[0]

ALWAYS = ("data", "model", "optim", "trainer", "seed", "name")
"""Keys of the config of every run, whatever its version; a torn file lacks the last ones."""

OPEN = {"callbacks", "metrics"}
"""Groups of the config in which the user chooses the keys."""


def saved_config(source: Path, overrides: Sequence[str]) -> "DictConfig":
    """Return the config that a run was started with, changed by the overrides of a new command.

    A config of an older version gets today's values for new keys.

    Raises:
        UserError: `source` is no run, its config names what it may not, or an override is not for
            a value of it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import DictConfig, OmegaConf

    folder, _ = split_source(source)
    path = folder / HYDRA / "config.yaml"
    plain = read_mapping(path, _parse)
    if lost := [key for key in ALWAYS if key not in plain]:
        raise UserError(f"{path} is damaged: it has no {', '.join(lost)}\nrestore it from a copy")
    if (today := _composed_today(folder)) is not None:
        plain = up_to_date(plain, today)
    config = OmegaConf.create(plain)
    if config.name is None:
        config.name = folder.resolve().name
    missing = object()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key.partition(".")[0] in COMMAND:
            continue
        value = OmegaConf.select(config, key, default=missing)
        if value is missing or isinstance(value, DictConfig) or override.is_delete():
            problem = "keeps its values" if override.is_delete() else "keeps its choices"
            if value is missing:
                parent, _, name = key.rpartition(".")
                group = OmegaConf.select(config, parent) if parent else config
                siblings = map(str, group) if isinstance(group, DictConfig) else ()
                problem = f"has no such value{suggest(name, siblings)}"
            given = str(override.input_line).lstrip("+")
            raise UserError(
                f"{given}: the config of {folder} {problem}; "
                f"single values can be changed, such as trainer.epochs=20"
            )
        OmegaConf.update(config, key, override.value())
    changed = OmegaConf.to_container(config, resolve=False)
    vet(changed, folder)
    vet_objects(changed, folder)
    return config


def with_found(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the config of a run with what the run found in its data, if it has kept that."""
    path = split_source(source)[0] / FOUND
    if "found" not in config["data"] or not path.is_file():
        return config
    return config | {"data": config["data"] | {"found": read_mapping(path)}}


def _parse(text: str) -> Any:
    """Parse YAML as Hydra does."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except OmegaConfBaseException as error:
        raise ValueError(error) from error


def _composed_today(folder: Path) -> dict[str, Any] | None:
    """Compose a run's choices with the configs as they are now, if its folder says the choices."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    if not GlobalHydra.instance().is_initialized():  # no config folder to compose from
        return None
    if (choices := _choices(folder)) is None:
        return None
    try:
        composed: Any = OmegaConf.to_container(compose("config", choices), resolve=False)
    except HydraException as error:  # a choice that was renamed, or is in another --config-dir
        log.warning("the config of %s is taken as it is: %s", folder, str(error).splitlines()[0])
        return None
    return composed


def _choices(folder: Path) -> list[str] | None:
    """Return the choices that the config of a run was composed of, as overrides, if it says."""
    from hydra.core.global_hydra import GlobalHydra

    def found_in(path: Path, *keys: str, kind: type) -> Any:
        advice = "delete it: the config of the run is then taken as it is"
        found: Any = read_mapping(path, lambda text: {"": _parse(text)}, advice)[""]
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, kind):
            what = ".".join(keys) or "list of overrides"
            raise UserError(f"{path} is damaged: it has no {what}\n{advice}")
        return found

    hydra, given = (folder / HYDRA / name for name in ("hydra.yaml", "overrides.yaml"))
    if hydra.is_file():
        chosen = found_in(hydra, "hydra", "runtime", "choices", kind=dict)
        found = [f"{group}={choice}" for group, choice in chosen.items() if choice]
    elif given.is_file():
        found = [str(override) for override in found_in(given, kind=list)]
    else:
        return None
    options = GlobalHydra.instance().config_loader().get_group_options
    groups = {text: text.partition("=")[0].partition("@")[0] for text in found}
    # experiment and debug only change other choices, which are listed too, and values
    skipped = ("experiment", "debug", "hydra") if hydra.is_file() else ("hydra",)
    own = (text for text in found if groups[text].partition("/")[0] not in skipped)
    return [text for text in own if options(groups[text])]


def up_to_date(saved: Mapping, today: Mapping) -> dict[str, Any]:
    """Return a saved config with today's keys, and today's names of code that has moved since.

    Args:
        saved: the config of a run.
        today: what the run's choices compose now.
    """
    gone: list[str] = []

    def merge(saved: Mapping, today: Mapping, path: str) -> dict[str, Any]:
        merged = dict(today)
        for key, value in saved.items():
            if key not in today and not {path.removesuffix("."), f"{path}{key}"} & OPEN:
                gone.append(f"{path}{key}={value}")
            elif isinstance(value, Mapping) and isinstance(today.get(key), Mapping):
                merged[key] = merge(value, today[key], f"{path}{key}.")
            elif not _names_missing_code(value):
                merged[key] = value
        return merged

    merged = merge(saved, today, "")
    if gone:
        log.warning("keys of this run that no longer exist are left out: %s", ", ".join(gone))
    return merged


def _names_missing_code(value: Any) -> bool:
    """Return whether a value names something of this package that does not exist."""
    if not isinstance(value, str) or not value.startswith(f"{PACKAGE}."):
        return False
    try:
        locate(value)
    except UserError:
        return True
    return False
