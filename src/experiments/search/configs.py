"""Composing the configs of trials, outside of Hydra's own command line.

Hydra is imported where something is composed: a worker's configs come from its launcher.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.core import trust
from experiments.core.config import by_target, check_config, leaves, place, settled
from experiments.core.trust import says, vet, vet_objects
from experiments.errors import UserError, suggest
from experiments.tracking.wandb_names import overrides_of
from experiments.training.run_folder import CODE
from experiments.training.saving.config import OPEN

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


SOURCE = "a search"  # of configs, in messages
MOST = 6  # choices that a message lists

beside: str | None = None
"""The folder that Hydra, as it begins, is to search after its own; `hydra_plugins` reads this."""

_trusted: str | None = None  # the user's `--config-dir`


def trust_own(config_folder: Path, config_dir: str | None, packages: Any) -> None:
    """Trust what a command line trusts: its folders of config files, and packages."""
    global _trusted
    _trusted = config_dir
    trust.allow([config_folder, *([Path(config_dir)] if config_dir else [])], packages)


def arguments() -> list[str]:
    """Return what to say on the command line of a process that is to trust the same."""
    return [*trust.arguments(), *flags(_trusted)]


def flags(config_dir: str | None) -> list[str]:
    """Return the flag of a command line that names a folder of config files beside `conf`."""
    return [f"--config-dir={config_dir}"] if config_dir else []


class Configs:
    """The configs that can be composed in a folder, each with `overrides`; they are remembered.

    Args:
      config_dir: folder of further config files. To compose them is not to trust what they name.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = (), config_dir: str | None = None):
        for override in overrides:
            if re.match(r"[+~]*hydra\b", override):  # hydra.searchpath imports packages
                raise UserError(f"{override}: {SOURCE} changes nothing of Hydra itself")
        self.folder, self.overrides, self.config_dir = folder, tuple(overrides), config_dir
        self._composed: dict[tuple, dict[str, Any]] = {}

    def compose(self, values: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Return the config with other `values`, by dotted path or group; without interpolating.

        Composing by Hydra is slow: configs that differ in values alone are copies of one.
        """
        chosen = {key: value for key, value in values.items() if key in self.groups or "@" in key}
        others = {path: value for path, value in values.items() if path not in chosen}
        return place(self._of_choices(chosen), others)

    def plain(self, values: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Return the same with interpolations resolved."""
        return resolved(self.compose(values))

    @functools.cached_property
    def groups(self) -> dict[str, list[str]]:
        """The config groups, each with its choices."""
        from hydra.core.object_type import ObjectType

        found = {}
        with self.hydra() as loader:
            for group in loader.list_groups(""):
                options = loader.get_group_options(group, ObjectType.CONFIG)
                found[group] = [option for option in options if not option.startswith("_")]
        return found

    def paths(self, choices: Mapping[str, str]) -> frozenset[str]:
        """Return the dotted paths of the config with these choices, of values and of nodes."""
        return frozenset(_paths(self._of_choices(choices)))

    def elsewhere(self, key: str) -> str:
        """Return which other choices of a key's group have it: `only optim=momentum has this key`.

        The text is empty where none has. It is read in their files, which is quick.
        """
        group, _, inner = key.partition(".")
        folders = [self.folder, *([Path(self.config_dir)] if self.config_dir else [])]
        files = [path for one in folders for path in sorted(one.glob(f"{group}/[!_]*.yaml"))]
        names = [path.stem for path in files if inner in _keys_of(path)]
        if not inner or not names:
            return ""
        shown = [*names[:MOST], *([f"{len(names) - MOST} others"] if len(names) > MOST else [])]
        *most, last = shown
        listed = f"{', '.join(most)} and {last} have" if most else f"{last} has"
        return f"only {group}={listed} this key"

    @functools.cached_property
    def given(self) -> dict[str, Any]:
        """The overrides, by path or group."""
        return {o.key_or_group: o.value() for o in self.parse(self.overrides)}

    def parse(self, arguments: Sequence[str]) -> "list[Override]":
        """Parse arguments of a command line by Hydra's grammar."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        with self.hydra() as loader:
            return OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))

    def _of_choices(self, choices: Mapping[str, str]) -> dict[str, Any]:
        """Return the config with these choices, which is not to be changed."""
        key = tuple(sorted(choices.items()))
        if key not in self._composed:
            from hydra import compose
            from omegaconf import OmegaConf

            _ = self.given  # remembered too, so that a worker need not parse them
            overrides = [*self.overrides, *assignments(choices)]
            with self.hydra():
                config = OmegaConf.to_container(compose("config", overrides=overrides))
            self._composed[key] = {str(k): v for k, v in config.items()}  # type: ignore[union-attr]
        return self._composed[key]

    @contextmanager
    def hydra(self) -> Iterator[Any]:
        """Have Hydra read this folder, and afterwards what it read before."""
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        global beside
        if self.config_dir is not None and not Path(self.config_dir).is_dir():
            raise UserError(f"--config-dir={self.config_dir}: there is no such folder")
        before, beside = GlobalHydra.instance().hydra, self.config_dir
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(self.folder), version_base="1.3"):
                yield GlobalHydra.instance().config_loader()
        finally:
            GlobalHydra.instance().hydra, beside = before, None


def _keys_of(path: Path) -> set[str]:
    """Return the dotted keys of a file of a group, with those of the files that it builds on."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    found = set(_paths({key: value for key, value in content.items() if key != "defaults"}))
    for name in content.get("defaults", ()):
        base, _, package = str(name).partition("@")
        if (other := path.parent / f"{base}.yaml").is_file() and other != path:
            found |= {f"{package}.{key}" if package else key for key in _keys_of(other)}
    return found


def check_added(arguments: Sequence[str], config: Mapping[str, Any], groups: Iterable[str]) -> None:
    """Check that something reads the keys that arguments add to a config, such as `+foo=1`.

    What is of a function's arguments is checked with these, and a choice of one of the `groups` may
    be of anything. `config` is not resolved.

    Raises:
        UserError: nothing does.
    """
    for argument in arguments:
        added = re.match(r"\+{1,2}(\w+)((?:\.\w+)*)=", argument)
        if added is None or added[1] in OPEN or (not added[2] and added[1] in groups):
            continue
        node: Any = config
        nodes = [node := node.get(key, {}) for key in f"{added[1]}{added[2]}".split(".")[:-1]]
        called = any("_target_" in one for one in nodes)
        if not called and f"${{{added[1]}" not in str(config):
            hint = suggest(added[1], {*config, *groups} - {added[1]})
            raise UserError(f"{argument}: nothing reads {added[1]}{added[2]}{hint}")


# returns the one `Configs` of this process for these arguments
configs_of = functools.lru_cache(maxsize=8)(Configs)


def check_trial(config: dict[str, Any]) -> None:
    """Check the config of a trial; raises `UserError`."""
    vet_objects(config, SOURCE)
    check_config(config)
    if config["data"].get("batch_size") == "auto":
        raise UserError(
            "data.batch_size=auto: a search compares trials of one size; let one run find it, and "
            "say the number"
        )


def check_trains(config: Mapping[str, Any]) -> None:
    """Check that a config, of an experiment file perhaps, is of a training; raises `UserError`."""
    if (mode := config["mode"]) != "train":
        hint = "; lesson.seeds=3 repeats it" if mode == "lesson" else ", which is for trainings"
        raise UserError(f"mode={mode} cannot be searched{hint}")


def compilation_cache(config: dict[str, Any]) -> str | None:
    """Return the folder of compiled programs, but not one that the study alone names.

    What is in it is executed, and the study may have been sent.
    """
    folder = config["trainer"]["compilation_cache"]
    return folder if not folder or says("compilation_cache", folder) else None


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the values that its interpolations stand for, and an objective.

    It may be of a file that somebody sent, so what it names and reads is checked before.
    """
    vet(config, SOURCE)
    if any(isinstance(value, str) and "${" in value for _, value in leaves(config)):
        from omegaconf import OmegaConf

        config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[assignment]
    if by_target(config):
        vet_objects(config, SOURCE)  # the data are asked, and so built
    return settled(config)


def _paths(node: Any, path: str = "") -> Iterator[str]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        inner = f"{path}.{key}" if path else str(key)
        yield inner
        if isinstance(value, dict | list):
            yield from _paths(value, inner)


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Return values as overrides: `optim.learning_rate=0.001`, `model.hidden=[8,8]`."""
    return [f"{path}={as_override(value)}" for path, value in values.items()]


def as_override(value: Any) -> str:
    """Return a value as the right-hand side of an override."""
    if isinstance(value, str) and not value:
        return "''"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    from hydra.core.override_parser.types import Override, OverrideType, ValueType

    return Override(OverrideType.CHANGE, "", ValueType.ELEMENT, value).get_value_element_as_str()


def wrong_overrides(command: Any, source: str) -> Iterator[str]:
    """Yield what is wrong with the command of a sweep file, which no command line has said."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        for text in overrides_of(command):
            if text.lstrip("+").startswith(CODE):
                raise UserError(f"command: only a command line can say {text}")
            override = OverridesParser.create().parse_override(text)
            trust.vet({override.key_or_group: override.value()}, source)
    except HydraException as error:
        yield f"command: {str(error).splitlines()[0]}"
    except UserError as error:
        yield str(error)
