"""Runs as their folders tell them: what is compared, whatever kind of model they are of."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from experiments.errors import UserError
from experiments.tracking.description import flatten
from experiments.tracking.jsonl import METRICS, SUMMARY, read_history

UNIMPORTANT = ("name", "resume", "checkpoint", "mode", "logger", "cluster", "nodes")
"""Parts of a config that say nothing of what a run came to."""


@dataclass(frozen=True)
class RunData:
    """A run that has ended."""

    name: str
    """Its folder below the one that is looked at."""
    config: dict[str, Any]
    """Flat, `optim.learning_rate`."""
    summary: dict[str, Any]
    history: Sequence[dict[str, float]]
    figures: Sequence[Path]

    @property
    def metric(self) -> str:
        """The metric by which its best epoch was chosen, `val/accuracy`."""
        return str(self.summary.get("monitor", "val/loss"))

    @property
    def value(self) -> float | None:
        """The metric after the best epoch; None of a run that has no epoch or came to no number."""
        value = self.summary.get("best", {}).get(self.metric)
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    @property
    def tested(self) -> float | None:
        """The same metric on the test split."""
        value = self.summary.get(self.metric.replace("val/", "test/"))
        return value if isinstance(value, int | float) else None

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """(epochs, the metric after each)."""
        points = [
            (event["epoch"], event[self.metric]) for event in self.history if self.metric in event
        ]
        return [x for x, _ in points], [y for _, y in points]


@dataclass(frozen=True)
class Replicates:
    """Runs that differ in nothing but their seed."""

    runs: Sequence[RunData]

    def spread(self) -> tuple[float, float, float, float]:
        """(mean, standard deviation, smallest, largest) of their values."""
        values = [run.value for run in self.runs if run.value is not None]
        return fmean(values), stdev(values), min(values), max(values)


def read_runs(folder: Path) -> list[RunData]:
    """Every run below `folder` that has ended.

    Raises:
        UserError: there is none.
    """
    runs = [_read(path.parent, folder) for path in sorted(folder.rglob(SUMMARY))]
    if not runs:
        raise UserError(f"there is no finished run (summary.json) below {folder}")
    return runs


def families(runs: Iterable[RunData]) -> list[list[RunData]]:
    """The runs that were judged by one metric together, best first."""
    found: dict[str, list[RunData]] = defaultdict(list)
    for run in runs:
        found[run.metric].append(run)
    return [_ranked(family) for family in found.values()]


def differences(runs: Sequence[RunData]) -> list[str]:
    """The keys of the configs of which the runs do not all have the same value."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    return [n for n in names if len({repr(run.config.get(n)) for run in runs}) > 1]


def replicates(runs: Iterable[RunData]) -> list[Replicates]:
    """The groups of two or more that have a value and one config, but for the seed."""
    groups: dict[str, list[RunData]] = defaultdict(list)
    for run in runs:
        if run.value is not None:
            settings = {k: v for k, v in run.config.items() if k != "seed"}
            groups[repr(sorted(settings.items()))].append(run)
    return [Replicates(group) for group in groups.values() if len(group) > 1]


def _read(path: Path, folder: Path) -> RunData:
    file = path / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text()) if file.is_file() else {}
    figures = sorted((path / "figures").glob("*.png"))
    return RunData(
        name=str(path.relative_to(folder)),
        config=flatten({k: v for k, v in config.items() if k not in UNIMPORTANT}),
        summary=json.loads((path / SUMMARY).read_text()),
        history=read_history(path / METRICS),
        # those of the end; what was drawn under way has the step in its name
        figures=[figure for figure in figures if not figure.stem[-8:].isdigit()],
    )


def _ranked(runs: Sequence[RunData]) -> list[RunData]:
    sign = -1 if runs[0].summary.get("monitor_mode") == "max" else 1
    return sorted(runs, key=lambda run: math.inf if run.value is None else sign * run.value)
