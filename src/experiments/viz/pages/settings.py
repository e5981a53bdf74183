"""Settings, which are runs that differ in their seed alone, and where they are found.

A comparison is of settings: mean and deviation over the seeds of each, never one seed with another.
"""

import csv
import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.machine import write_whole
from experiments.tracking.jsonl import METRICS, SUMMARY
from experiments.tracking.terminal import number
from experiments.viz.pages.records import RunData, cell, read_run, read_yaml
from experiments.viz.pages.statistics import interval_of_difference

SEEDS = ("seed", "trainer.shuffle_seed")
STUDY, RESULTS = "study.yaml", "results.csv"
# files of folders whose runs are parts of something else than a comparison of trainings
PARTS = {"lr_range.json": "learning-rate tests", "lesson.json": "lessons"}


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seed: replicates.

    Attributes:
        runs: one or more.
        metric: what they are compared by, such as `val/accuracy`.
        minimized: whether a smaller value of it is better.
        origin: the first run, or the study whose best setting it is.
        values: what sets it apart from the others that it is compared with.
    """

    runs: Sequence[RunData]
    metric: str
    minimized: bool
    origin: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def validation(self) -> list[float]:
        """The metric of each run that has a finite one."""
        return [x for run in self.runs if (x := run.best(self.metric)) is not None]

    @cached_property
    def test(self) -> list[float]:
        """The same of the test split, of the runs that were tested."""
        return [x for run in self.runs if (x := run.tested(self.metric)) is not None]

    @property
    def rank(self) -> float:
        """A number that is smaller for a better setting."""
        sign = 1 if self.minimized else -1
        return sign * fmean(self.validation) if self.validation else math.inf

    @property
    def kind(self) -> tuple[str, str, str]:
        """Data, objective and metric: only what agrees in them is compared."""
        return self.runs[0].data, self.runs[0].objective, self.metric

    @property
    def name(self) -> str:
        """What sets it apart, in a line."""
        ends = [key.rpartition(".")[2] for key in self.values]
        on, off = [], []  # what is null, such as data.limit, is said where nothing else is
        for (key, value), end in zip(self.values.items(), ends, strict=True):
            shown = end if ends.count(end) == 1 else key
            if value is None:
                off.append(f"{shown}=null")
            elif value != "":
                on.append(f"{shown}={cell(value)}")
        return ", ".join(on or off) or self.origin

    def behind(self, best: "Setting") -> tuple[float, float] | None:
        """Return the 95 % interval of how much it is worse; None without replicates of both."""
        if min(len(self.validation), len(best.validation)) < 2 or self is best:
            return None
        pair = (self.validation, best.validation)
        return interval_of_difference(*(pair if self.minimized else pair[::-1]))


@dataclass(frozen=True)
class Found:
    """What there is below folders.

    Attributes:
        groups: settings by (data, objective, metric), best first.
        left_out: how much there is of what is no training, by what it is.
    """

    groups: Mapping[tuple[str, str, str], Sequence[Setting]]
    left_out: Mapping[str, int]

    @property
    def runs(self) -> list[RunData]:
        """All runs of all settings."""
        return [run for group in self.groups.values() for one in group for run in one.runs]


def find(folders: Sequence[Path]) -> Found:
    """Return the trainings in and below folders, a study as its best setting."""
    found: list[Setting] = []
    left_out: Counter[str] = Counter()
    for folder in map(Path.absolute, folders):
        found += _below(folder, folder.parent if len(folders) > 1 else folder, left_out)
    groups: dict[tuple[str, str, str], list[Setting]] = defaultdict(list)
    for one in _joined(found, left_out):
        groups[one.kind].append(one)
    return Found({kind: distinguished(groups[kind]) for kind in sorted(groups)}, left_out)


def differences(runs: Sequence[RunData]) -> list[str]:
    """Return what the configs of runs differ in: config groups, and keys such as `optim.b1`.

    Keys that follow from the choice of a group are not named beside it.
    """
    return list(_differing([run.settings for run in runs], _choices(runs)))


def distinguished(settings: Sequence[Setting]) -> list[Setting]:
    """Return settings, best first, each with what sets it apart."""
    ranked = sorted(settings, key=lambda one: one.rank)
    runs = [one.runs[0] for one in ranked]
    differing = _differing([run.settings for run in runs], _choices(runs))
    values = [
        {name: known[index] for name, known in differing.items()} for index in range(len(ranked))
    ]
    return [replace(one, values=own) for one, own in zip(ranked, values, strict=True)]


def _differing(configs: Sequence[Mapping[str, Any]], choices: Mapping[str, list[str]]) -> dict:
    """Return what differs, by name, with its value in each config; "" where there is none."""
    differing: dict[str, list[Any]] = {**choices}
    for name in dict.fromkeys(name for config in configs for name in config):
        chosen = choices.get(name.partition(".")[0], [""] * len(configs))
        known = defaultdict(set)  # values by the choice that they come with
        for config, choice in zip(configs, chosen, strict=True):
            if name in config:
                known[choice].add(repr(config[name]))
        if any(len(values) > 1 for values in known.values()):
            differing[name] = [config.get(name, "") for config in configs]
    return differing


def _choices(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """Return the choice of each run by config group, for groups that runs choose differently."""
    found = {}
    for group in sorted({name for run in runs for name in run.choices}):
        start = f"{group}."
        configs = [repr({k: v for k, v in r.settings.items() if k.startswith(start)}) for r in runs]
        said = {
            c: run.choices[group]
            for c, run in zip(configs, runs, strict=True)
            if group in run.choices
        }
        chosen = [
            said.get(config) or str(run.composed_of.get(group, "default"))
            for config, run in zip(configs, runs, strict=True)
        ]
        if len(set(chosen)) > 1:
            found[group] = chosen
    return found


def study_settings(folder: Path, base: Path) -> list[Setting]:
    """Return the settings of a study that have finished trials, best first.

    A trial that was ended early is no replicate of one that was not. Replicates are the seeds of
    each trial where the study has `seeds`, and trials that differ in their seed alone where it
    varies that.
    """
    plan, path = read_yaml(folder / STUDY), folder / RESULTS
    metric, goal = (
        one if isinstance(one, str) else one[0] for one in (plan["metric"], plan["goal"])
    )
    replicates: dict[tuple[tuple[str, str], ...], list[RunData]] = defaultdict(list)
    for row in csv.DictReader(
        path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    ):
        trial = folder / row["run"]
        runs = [trial, *sorted(trial.glob("seed_*"))] if row["state"] == "finished" else []
        behind = list(row)[list(row).index("run") + 1 :]  # the columns of parameters
        varied = tuple((name, row[name]) for name in behind if name != "seed" and row[name])
        replicates[varied] += [read_run(run, base) for run in runs if (run / SUMMARY).is_file()]
    settings = [
        Setting(runs, metric, goal == "minimize", plan["name"], dict(values))
        for values, runs in replicates.items()
        if runs
    ]
    return sorted(settings, key=lambda one: one.rank)


def replicated(settings: Sequence[Setting]) -> bool:
    """Return whether any setting has several runs."""
    return any(len(one.runs) > 1 for one in settings)


def spread(values: Sequence[float]) -> str:
    """Return `0.9812 ± 0.0031`, without a deviation of one value; empty of none."""
    if len(values) < 2:
        return "".join(map(number, values))
    return f"{number(fmean(values))} ± {stdev(values):.2g}"


def difference(one: Setting, settings: Sequence[Setting]) -> str:
    """Return how far a setting is behind the best one, and whether that is more than noise.

    That is the best of those that have several runs.
    """
    best = next((other for other in settings if len(other.validation) > 1), settings[0])
    if (interval := one.behind(best)) is None:
        return "" if one is not best else "best" if best is settings[0] else "best of several seeds"
    low, high = interval
    if math.isinf(high):
        return "too few seeds to tell"
    said = "within noise" if low <= 0 <= high else "more than noise"
    return f"{(low + high) / 2:.2g}, {said} ({low:.2g} to {high:.2g})"


def in_lines(settings: Sequence[Setting]) -> list[str]:
    """Return a line per setting, `optim=adam: 5 seeds, val/accuracy 0.97 ± 0.01`; best first."""
    lines = []
    for one in settings:
        scores = {one.metric: one.validation, one.metric.replace("val/", "test/"): one.test}
        said = [f"{metric} {spread(values)}" for metric, values in scores.items() if values]
        behind = difference(one, settings)
        said += [f"behind by {behind}"] if "noise" in behind else []
        name = f"{one.name}: " if one.values else ""
        lines.append(f"{name}{len(one.runs)} seeds, {', '.join(said)}")
    return lines


def write_settings(path: Path, settings: Sequence[Setting]) -> None:
    """Write a table with a row per setting: its values, and means and deviations over seeds."""
    metric, table = settings[0].metric, io.StringIO()
    splits = {metric: "validation", metric.replace("val/", "test/"): "test"}
    writer = csv.writer(table, lineterminator="\n")
    head = [f"{name} {what}" for name in splits for what in ("mean", "std")]
    writer.writerow([*settings[0].values, "runs", *head])
    for one in settings:
        each = [getattr(one, split) for split in splits.values()]
        known = [[fmean(v) if v else "", stdev(v) if len(v) > 1 else ""] for v in each]
        writer.writerow([*one.values.values(), len(one.runs), *itertools.chain(*known)])
    write_whole(path, table.getvalue())


def _below(folder: Path, base: Path, left_out: Counter[str]) -> Iterator[Setting]:
    """Yield the settings of all that lies in and below a folder; count what is no training."""
    if (folder / STUDY).is_file():
        if settings := study_settings(folder, base):
            what = "settings" if replicated(settings) else "trials"
            origin = f"study {settings[0].origin}"
            if len(settings) > 1:
                origin += f", the best of {len(settings)} {what}"
            yield replace(settings[0], origin=origin)
        else:
            left_out["studies without results"] += 1
        return
    if (folder / SUMMARY).is_file():
        run = read_run(folder, base)
        if run.summary.get("status") and run.config:
            yield Setting([run], run.metric, run.minimized, run.name)
            return
        left_out["evaluations"] += 1
    elif (folder / METRICS).is_file():
        left_out["trainings that have not ended"] += 1
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            part = next((what for name, what in PARTS.items() if (path / name).exists()), None)
            if part:
                left_out[part] += 1
            else:
                yield from _below(path, base, left_out)


def _joined(settings: Iterable[Setting], left_out: Counter[str]) -> Iterator[Setting]:
    """Join runs that differ in nothing but the seed; the best setting of a study stays its own.

    Of runs with the same seed the newest counts: one that is run again says nothing of the spread.
    """
    joined: dict[str, list[Setting]] = defaultdict(list)
    for one in settings:
        alone = one.origin == one.runs[0].name
        key = repr(sorted(one.runs[0].settings.items())) if alone else one.runs[0].folder
        joined[f"{one.kind} {alone} {key}"].append(one)
    for same in joined.values():
        runs = [run for one in same for run in one.runs]
        if len(same) > 1:  # runs of their own, of the same setting
            newest = {tuple(map(run.config.get, SEEDS)): run for run in runs}
            if repeated := len(runs) - len(newest):
                left_out["runs that were repeated later"] += repeated
            runs = list(newest.values())
        yield replace(same[0], runs=runs, origin=same[0].origin if len(same) == 1 else runs[0].name)
