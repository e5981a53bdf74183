"""Runs of a folder side by side: read from their folders, as a table in the terminal, as a page."""

import base64
import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import plotly.graph_objects as go
import yaml
from rich.console import Console
from rich.table import Table

from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, SUMMARY, read_history, read_mapping
from experiments.tracking.terminal import number
from experiments.tracking.wandb_names import flatten
from experiments.viz.pages import page

PAGE = "report.html"
MOST_PICTURED = 24  # runs of a family whose figures are in the page; each weighs some 100 kB
# parts of a config that change no result
UNIMPORTANT = (
    *("name", "resume", "checkpoint", "overwrite", "mode", "logger", "cluster", "nodes"),
)


@dataclass(frozen=True)
class RunData:
    """A run as its folder describes it.

    Attributes:
        name: the path of its folder below the one that is reported on.
        config: flat, with keys such as `optim.learning_rate`.
        summary: of a run that has ended; else empty.
        history: the events of its `metrics.jsonl`.
        figures: the PNGs of its end, without those drawn during training, and of mode=inspect.
        started: the entries of its `provenance.json`, the oldest first.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: Sequence[dict[str, float]]
    figures: Sequence[Path]
    started: Sequence[dict[str, Any]] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the config that can change a result."""
        return {k: v for k, v in self.config.items() if k.partition(".")[0] not in UNIMPORTANT}

    @property
    def metric(self) -> str:
        """The metric by which its best epoch was chosen, such as `val/accuracy`."""
        return str(self.summary.get("monitor", "val/loss"))

    @property
    def value(self) -> float | None:
        """The metric after the best epoch; None without an epoch or a finite value."""
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
        events = [event for event in self.history if {self.metric, "epoch"} <= event.keys()]
        return [event["epoch"] for event in events], [event[self.metric] for event in events]


def compare_runs(folder: Path) -> None:
    """Print the finished runs below `folder`, best first, and write `report.html` into it.

    Raises:
        UserError: there is no finished run below `folder`.
    """
    runs = read_runs(folder)
    if not runs:
        raise UserError(f"there is no finished run (summary.json) below {folder}")
    console = Console()
    for family in families(runs):
        console.print(_terminal_table(family))
        for group in replicates(family):
            mean, deviation, low, high = map(number, spread(group))
            seeds = f"{len(group)} seeds like {group[0].name}"
            console.print(f"{seeds}: {mean} ± {deviation}, {low} to {high}")
        console.print()
    write_whole(folder / PAGE, runs_page(str(folder), runs))
    print(f"page        {folder / PAGE}")


def read_runs(folder: Path) -> list[RunData]:
    """Return every run below `folder` that has ended."""
    return [read_run(path.parent, folder) for path in sorted(folder.rglob(SUMMARY))]


def read_run(path: Path, folder: Path) -> RunData:
    """Return the run in `path`, which lies below `folder`."""
    config, summary = path / ".hydra" / "config.yaml", path / SUMMARY
    figures = [f for part in ("figures", "inspect") for f in sorted((path / part).glob("*.png"))]
    return RunData(
        name=str(path.relative_to(folder)),
        config=flatten(read_mapping(config, yaml.safe_load) if config.is_file() else {}),
        summary=read_mapping(summary) if summary.is_file() else {},
        history=read_history(path / METRICS),
        # names of figures that were drawn during training end in the step
        figures=[figure for figure in figures if not figure.stem[-8:].isdigit()],
        started=provenance.read_starts(path),
    )


def families(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Group the runs by their metric; within a group the best comes first."""

    def rank(run: RunData) -> float:
        sign = -1 if run.summary.get("monitor_mode") == "max" else 1
        return math.inf if run.value is None else sign * run.value

    found: dict[str, list[RunData]] = {run.metric: [] for run in runs}
    for run in sorted(runs, key=rank):
        found[run.metric].append(run)
    return list(found.values())


def differences(runs: Sequence[RunData]) -> list[str]:
    """Return the keys of the configs that do not have the same value in all runs."""
    settings = [run.settings for run in runs]
    names = dict.fromkeys(name for found in settings for name in found)
    return [name for name in names if len({repr(found.get(name)) for found in settings}) > 1]


def replicates(runs: Iterable[RunData]) -> list[list[RunData]]:
    """Group the runs with a value that differ in nothing but the seed, two or more each."""
    groups: dict[str, list[RunData]] = defaultdict(list)
    for run in runs:
        if run.value is not None:
            settings = {k: v for k, v in run.settings.items() if k != "seed"}
            groups[repr(sorted(settings.items()))].append(run)
    return [group for group in groups.values() if len(group) > 1]


def spread(runs: Sequence[RunData]) -> tuple[float, float, float, float]:
    """Return (mean, standard deviation, smallest, largest) of the values of replicates."""
    values = [run.value for run in runs if run.value is not None]
    return fmean(values), stdev(values), min(values), max(values)


def runs_page(title: str, runs: Sequence[RunData]) -> str:
    """Return the page, with a section for each metric that runs are compared by."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="faint">{len(runs)} runs</p>']
    for family in families(runs):
        metric = family[0].metric
        parts.append(f"<h2>{html.escape(metric)}: {len(family)} runs, best first</h2>")
        parts.append(_comparison(family))
        if groups := replicates(family):
            parts.append("<h2>Replicates: runs that differ in their seed alone</h2>")
            parts.append(_spreads(groups))
        if any(run.curve[0] for run in family):
            parts.append(page.chart("Learning curves", learning_curves(family), 420))
        parts.append("<h2>Figures</h2>" + "".join(map(_pictures, family[:MOST_PICTURED])))
        if len(family) > MOST_PICTURED:
            parts.append(f'<p class="faint">of the best {MOST_PICTURED} of {len(family)}</p>')
        parts.append(_origins(family))
    return page.document(title, "".join(parts))


def learning_curves(runs: Sequence[RunData]) -> go.Figure:
    """Draw the metric of every run by epoch; a click on a name hides it."""
    figure = go.Figure()
    for run in runs:
        epochs, values = run.curve
        mode = "lines" if len(epochs) > 1 else "markers"
        figure.add_scatter(x=epochs, y=values, mode=mode, name=run.name)
    return figure.update_layout(xaxis_title="epoch", yaxis_title=runs[0].metric, showlegend=True)


def _terminal_table(runs: Sequence[RunData]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")  # a run must stay readable as a path
    table.add_column("status")
    for name in (runs[0].metric, "test", "epochs", "seconds", "examples/s"):
        table.add_column(name, justify="right")
    for run in runs:
        rest = (run.summary.get(k) for k in ("epoch", "seconds", "examples_per_second"))
        cells = map(_text, (run.value, run.tested, *rest))
        table.add_row(run.name, str(run.summary.get("status")), *cells)
    return table


def _comparison(runs: Sequence[RunData]) -> str:
    """Return a table with a row per run: its end, its values, and the settings that differ."""
    names = differences(runs)
    head = ["run", "status", f"best {runs[0].metric}", "test", "epoch", "seconds", "parameters"]
    lines = []
    for run in runs:
        summary, best = run.summary, run.summary.get("best", {})
        scores = (run.value, run.tested, best.get("epoch"), summary.get("seconds"))
        parameters = f"{summary['parameters']:,}" if "parameters" in summary else ""
        shown = [run.name, str(summary.get("status")), *map(_text, scores), parameters]
        lines.append(shown + _values(run, names))
    return page.table([*head, *names], lines)


def _spreads(groups: Sequence[Sequence[RunData]]) -> str:
    """Return a table with a row per group of replicates."""
    names = differences([group[0] for group in groups])
    lines = [
        [group[0].name, str(len(group)), *map(number, spread(group)), *_values(group[0], names)]
        for group in groups
    ]
    return page.table(["first", "runs", "mean", "± std", "smallest", "largest", *names], lines)


def _values(run: RunData, names: Sequence[str]) -> list[str]:
    return [page.cell(run.config.get(name, "")) for name in names]


def _origins(runs: Sequence[RunData]) -> str:
    """Return a table with a row per run, which a click unfolds: the code, machine and data."""
    lines = []
    for run in runs:
        if run.started:
            start, count = provenance.in_brief(run.started[-1]), len(run.started)
            code = start.pop("code") + (f", the last of {count} starts" if count > 1 else "")
            lines.append([run.name, code, *map(page.cell, start.values())])
    if not lines:
        return ""
    head = ["run", "code", *start]
    return f"<details><summary>Where they come from</summary>{page.table(head, lines)}</details>"


def _text(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else ""


def _pictures(run: RunData) -> str:
    """Return the figures of a run and the table of its classes, which a click unfolds."""
    classes = run.summary.get("classes", [])
    if not run.figures and not classes:
        return ""
    lines = [[page.cell(value) for value in row.values()] for row in classes]
    table = page.table(list(classes[0]), lines) if classes else ""
    images = "".join(
        f'<img alt="{html.escape(path.stem)}" title="{html.escape(path.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in run.figures
    )
    name = html.escape(run.name)
    inside = f'<div class="figures">{images}</div>{table}'
    return f"<details><summary>{name}</summary>{inside}</details>"
