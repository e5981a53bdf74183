"""Runs as their folders describe them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, SUMMARY, read_history, read_mapping
from experiments.tracking.wandb_names import flatten

# parts of a config that change no result, or that replicates differ in
UNIMPORTANT = frozenset(
    {
        *("seed", "trainer.shuffle_seed"),
        *("name", "resume", "checkpoint", "overwrite", "mode", "logger", "cluster", "nodes"),
        *("allow", "input", "callbacks", "population", "lr_range", "gradcheck", "sample"),
        *("pretrain", "predict", "export", "inspect", "lesson", "trainer.figures"),
        *("trainer.checkpoints", "trainer.checkpoint_every", "trainer.keep_every"),
    }
)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time


@dataclass(frozen=True)
class RunData:
    """A run as its folder describes it.

    Attributes:
        name: the path of its folder below the one that is reported on.
        folder: its folder.
    """

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config, flat, with keys such as `optim.learning_rate`."""
        return flatten(read_yaml(self.folder / ".hydra" / "config.yaml"))

    @cached_property
    def overrides(self) -> list[str]:
        """What its command line said."""
        path = self.folder / ".hydra" / "overrides.yaml"
        return list(map(str, yaml.load(path.read_text(), LOADER) or [])) if path.is_file() else []

    @cached_property
    def choices(self) -> dict[str, str]:
        """The choices of config groups that its command line made."""
        said = (override.lstrip("+").partition("=") for override in self.overrides)
        return {name: value for name, _, value in said if f"{name}._target_" in self.config}

    @cached_property
    def composed_of(self) -> dict[str, Any]:
        """All choices of config groups, said or not, as Hydra notes them; a trial has no note."""
        path = self.folder / ".hydra" / "hydra.yaml"
        noted = yaml.load(path.read_text(), LOADER) if path.is_file() else {}
        return noted.get("hydra", {}).get("runtime", {}).get("choices", {})

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What came out of a run that has ended; else empty."""
        path = self.folder / SUMMARY
        return read_mapping(path) if path.is_file() else {}

    @cached_property
    def history(self) -> Sequence[dict[str, float]]:
        """The events of its `metrics.jsonl`."""
        return read_history(self.folder / METRICS)

    @cached_property
    def figures(self) -> Sequence[Path]:
        """The PNGs of its end, without those drawn during training, and of mode=inspect."""
        found = [path for part in ("figures", "inspect") for path in (self.folder / part).glob("*")]
        # names of figures that were drawn during training end in the step
        return sorted(f for f in found if f.suffix == ".png" and not f.stem[-8:].isdigit())

    @cached_property
    def started(self) -> Sequence[dict[str, Any]]:
        """The entries of its `provenance.json`, the oldest first."""
        return provenance.read_starts(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The part of the config that can change a result, without its seeds."""
        return {
            name: value
            for name, value in self.config.items()
            if not UNIMPORTANT & {name, name.partition(".")[0]}
        }

    @property
    def metric(self) -> str:
        """The metric by which its best epoch was chosen, such as `val/accuracy`."""
        return str(self.summary.get("monitor", "val/loss"))

    @property
    def minimized(self) -> bool:
        """Whether a smaller value of the metric is better."""
        return self.summary.get("monitor_mode") != "max"

    @property
    def data(self) -> str:
        """The name of its data, and of the file or folder that they are in."""
        path = Path(str(self.config.get("data.path") or "")).name
        names = [str(self.config.get("data.name") or ""), path]
        return " ".join(filter(None, names)) or _last(self.config.get("data._target_")).lower()

    @property
    def objective(self) -> str:
        """The name of its objective, such as `classification`."""
        found = self.folder / "data.json"  # where the data decide
        task = (read_mapping(found).get("target") or {}).get("task") if found.is_file() else None
        return _last(self.config.get("objective._target_") or task).lower()

    def best(self, metric: str) -> float | None:
        """Return a metric after the best epoch; None without an epoch or a finite value."""
        return _finite(self.summary.get("best", {}).get(metric))

    def tested(self, metric: str) -> float | None:
        """Return the same metric on the test split, if it is known."""
        return _finite(self.summary.get(metric.replace("val/", "test/")))

    def curve(self, metric: str) -> dict[float, float]:
        """Return a metric by epoch."""
        found = ((e["epoch"], e[metric]) for e in self.history if {metric, "epoch"} <= e.keys())
        return {epoch: value for epoch, value in found if math.isfinite(value)}


def read_run(path: Path, folder: Path) -> RunData:
    """Return the run in `path`, which is `folder` or lies below it."""
    return RunData(path.name if path == folder else str(path.relative_to(folder)), path)


def cell(value: Any) -> str:
    """Return the text of a config value."""
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else _last(value)
        if _named(value)
        else str(value)
    )


def _named(value: Any) -> bool:
    return isinstance(value, str) and all(map(str.isidentifier, value.split(".")))


def _last(target: Any) -> str:
    return str(target or "").rpartition(".")[2]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty without the file."""
    return read_mapping(path, lambda text: yaml.load(text, LOADER)) if path.is_file() else {}


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
