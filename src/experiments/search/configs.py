"""Composing the configs of trials, outside of Hydra's own command line."""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from experiments.config import leaves


class Configs:
    """The configs that can be composed in a folder; `overrides` are part of every one."""

    def __init__(self, folder: Path, overrides: Sequence[str] = ()):
        self.folder, self.overrides = folder, tuple(overrides)
        self._of_choices = functools.lru_cache(maxsize=None)(self._compose)
        self._paths = functools.lru_cache(maxsize=None)(self._read_paths)

    def compose(self, values: Mapping[str, Any] | None = None) -> DictConfig:
        """The config in which `values`, dotted path or group to value, replace what was there.

        Hydra takes a quarter of a second to compose one; those that differ in values alone are
        copies of one.
        """
        values = values or {}
        chosen = {key: value for key, value in values.items() if key in self.groups or "@" in key}
        config = copy.deepcopy(self._of_choices(tuple(sorted(chosen.items()))))
        for path, value in values.items():
            if path not in chosen:
                OmegaConf.update(config, path, value, merge=False)
        return config

    def plain(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same as plain dicts, resolved."""
        config = OmegaConf.to_container(self.compose(values), resolve=True)
        return {str(key): value for key, value in config.items()}  # type: ignore[union-attr]

    @functools.cached_property
    def groups(self) -> dict[str, list[str]]:
        """The config groups, each with its choices."""
        found = {}
        with self._hydra() as loader:
            for group in loader.list_groups(""):
                options = loader.get_group_options(group, ObjectType.CONFIG)
                found[group] = [option for option in options if not option.startswith("_")]
        return found

    def paths(self, choices: Mapping[str, str]) -> frozenset[str]:
        """The dotted paths of the config with these group choices, of values and of nodes."""
        return self._paths(tuple(sorted(choices.items())))

    def parse(self, arguments: Sequence[str]) -> list[Override]:
        """Arguments of a command line as Hydra understands them."""
        with self._hydra() as loader:
            return OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))

    def _compose(self, choices: tuple) -> DictConfig:
        with self._hydra():
            return compose("config", overrides=[*self.overrides, *assignments(dict(choices))])

    def _read_paths(self, choices: tuple) -> frozenset[str]:
        plain = OmegaConf.to_container(self.compose(dict(choices)), resolve=False)
        return frozenset(_nodes(plain)) | {path for path, _ in leaves(plain)}

    @contextmanager
    def _hydra(self) -> Iterator[Any]:
        """Hydra at work in this folder; one that is at work already is left as it was."""
        before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(self.folder), version_base="1.3"):
                yield GlobalHydra.instance().config_loader()
        finally:
            GlobalHydra.instance().clear()
            if before is not None:
                GlobalHydra.instance().initialize(before)


def _nodes(node: Any, path: str = "") -> Iterator[str]:
    if path:
        yield path
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}" if path else str(key))


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Values as overrides: `optim.learning_rate=0.001`, `model.hidden=[8,8]`."""
    return [f"{path}={as_override(value)}" for path, value in values.items()]


def as_override(value: Any) -> str:
    """A value as the right-hand side of an override."""
    if isinstance(value, str) and not value:
        return "''"
    if isinstance(value, bool):
        return str(value).lower()
    return Override._get_value_element_as_str(value)
