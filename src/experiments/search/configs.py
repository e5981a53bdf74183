"""Composing the configs of trials, outside of Hydra's own command line.

Hydra is imported where something is composed: a worker's configs come from its launcher.
"""

import functools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.core.config import leaves

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


class Configs:
    """The configs that can be composed in a folder; `overrides` are part of every one.

    What was composed is kept, and goes along where these are pickled.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()):
        self.folder, self.overrides = folder, tuple(overrides)
        self._composed: dict[tuple, dict[str, Any]] = {}
        self._paths: dict[tuple, frozenset[str]] = {}
        self._given: dict[str, Any] | None = None

    def compose(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The config in which `values`, dotted path or group to value, replace what was there.

        Interpolations are left as they are. Hydra takes a quarter of a second to compose a config;
        those that differ in values alone are copies of one, which takes a thousandth of that.
        """
        values = values or {}
        chosen = {key: value for key, value in values.items() if key in self.groups or "@" in key}
        config = copied(self._of_choices(tuple(sorted(chosen.items()))))
        for path, value in values.items():
            if path not in chosen:
                *parents, last = path.split(".")
                node = functools.reduce(_child, parents, config)
                node[int(last) if isinstance(node, list) else last] = value
        return config

    def plain(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same with interpolations resolved."""
        return resolved(self.compose(values))

    @functools.cached_property
    def groups(self) -> dict[str, list[str]]:
        """The config groups, each with its choices."""
        from hydra.core.object_type import ObjectType

        found = {}
        with self._hydra() as loader:
            for group in loader.list_groups(""):
                options = loader.get_group_options(group, ObjectType.CONFIG)
                found[group] = [option for option in options if not option.startswith("_")]
        return found

    def paths(self, choices: Mapping[str, str]) -> frozenset[str]:
        """The dotted paths of the config with these group choices, of values and of nodes."""
        key = tuple(sorted(choices.items()))
        if key not in self._paths:
            config = self._of_choices(key)
            self._paths[key] = frozenset(_nodes(config)) | {path for path, _ in leaves(config)}
        return self._paths[key]

    def given(self) -> dict[str, Any]:
        """The overrides, by path or group."""
        if self._given is None:
            self._given = {o.key_or_group: o.value() for o in self.parse(self.overrides)}
        return self._given

    def parse(self, arguments: Sequence[str]) -> "list[Override]":
        """Arguments of a command line as Hydra understands them."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        with self._hydra() as loader:
            return OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))

    def _of_choices(self, choices: tuple) -> dict[str, Any]:
        if choices not in self._composed:
            from hydra import compose
            from omegaconf import OmegaConf

            self.given()  # kept too
            overrides = [*self.overrides, *assignments(dict(choices))]
            with self._hydra():
                config = OmegaConf.to_container(compose("config", overrides=overrides))
            self._composed[choices] = {str(k): v for k, v in config.items()}  # type: ignore[union-attr]
        return self._composed[choices]

    @contextmanager
    def _hydra(self) -> Iterator[Any]:
        """Hydra at work in this folder; one that is at work already is left as it was."""
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(self.folder), version_base="1.3"):
                yield GlobalHydra.instance().config_loader()
        finally:
            GlobalHydra.instance().clear()
            if before is not None:
                GlobalHydra.instance().initialize(before)


@functools.lru_cache(maxsize=8)
def configs_of(folder: Path, overrides: tuple[str, ...]) -> Configs:
    """The `Configs` of this process: whoever asks again finds what was composed before."""
    return Configs(folder, overrides)


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose interpolations have been replaced by what they stand for."""
    if any(isinstance(value, str) and "${" in value for _, value in leaves(config)):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore[return-value]
    return config


def as_yaml(config: Mapping[str, Any]) -> str:
    """A config as a file. Groups that trials share are turned into text once."""
    return "".join(_as_yaml(pickle.dumps({key: node})) for key, node in config.items())


@functools.lru_cache(maxsize=256)
def _as_yaml(pickled: bytes) -> str:
    return yaml.dump(pickle.loads(pickled), Dumper=yaml.CSafeDumper, sort_keys=False)


def copied(node: Any) -> Any:
    """A copy of nested dicts and lists."""
    if isinstance(node, dict):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node


def _child(node: Any, key: str) -> Any:
    return node[int(key) if isinstance(node, list) else key]


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
    if isinstance(value, int | float):
        return str(value)
    from hydra.core.override_parser.types import Override

    return Override._get_value_element_as_str(value)
