"""The page of a run, the page of a folder of runs, and what the terminal shows of them."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from experiments.errors import UserError
from experiments.machine import called, write_whole
from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS
from experiments.tracking.terminal import concise, duration, number
from experiments.viz.pages import comparison, page
from experiments.viz.pages.records import RunData, read_run
from experiments.viz.pages.settings import Found, Setting, difference, find, replicated, spread

PAGE = "report.html"
MOST_PICTURED = 24  # runs of a group whose figures are in the page; each weighs some 100 kB
MOST_CURVES = 4  # metrics of one run with a chart each


def compare_runs(folders: Sequence[Path], into: Path) -> None:
    """Print the trainings in and below folders, best first, and write `report.html` into `into`.

    Raises:
        UserError: there is none that has ended.
    """
    names = " and ".join(folder.absolute().name for folder in folders)
    if len(folders) == 1 and is_run(folders[0]):
        text = run_page(read_run(folders[0].absolute(), folders[0].absolute()))
    else:
        found = find(folders)
        if not found.groups:
            where = ", ".join(map(str, folders))
            raise UserError(f"there is no finished training (summary.json) in or below {where}")
        for kind, settings in found.groups.items():
            Console().print(_terminal_table(kind, settings))
            print()
        if found.left_out:
            print(f"left out    {_left_out(found)}")
        text = runs_page(names, found)
    write_whole(into / PAGE, text)
    print(f"page        {into / PAGE}")


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of one training, which may not have ended."""
    return (folder / ".hydra" / "config.yaml").is_file() and (folder / METRICS).is_file()


def runs_page(title: str, found: Found) -> str:
    """Return the page, with a section for each group of settings that can be compared."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="faint">{len(found.runs)} runs']
    parts.append(f"; left out: {_left_out(found)}</p>" if found.left_out else "</p>")
    for (data, objective, metric), settings in found.groups.items():
        count = f"{len(settings)} settings" if len(settings) > 1 else "one setting"
        kind = ", ".join(filter(None, [data, objective, metric]))
        heading = f"{kind}: {count}" + ", best first" * (len(settings) > 1)
        parts.append(f"<h2>{html.escape(heading)}</h2>{comparison.section(settings)}")
        runs = [run for one in settings for run in one.runs]
        pictured = list(map(_pictures, runs[:MOST_PICTURED]))
        if any(pictured):
            more = f" of the best {MOST_PICTURED} of {len(runs)} runs" * (len(runs) > len(pictured))
            parts.append(f"<h2>Figures{more}</h2>" + "".join(pictured))
        parts.append(_origins(runs))
    return page.document(title, "".join(parts))


def run_page(run: RunData) -> str:
    """Return the page of one run: how it ended, its curves, its figures, its config."""
    summary, best = run.summary, run.best(run.metric)
    name = str(run.config.get("name") or run.name)
    facts = [str(summary.get("status") or "has not ended")]
    which = "last" if summary.get("monitor_mode") == "last" else "best"  # none is, of a GAN
    facts += [f"{which} {run.metric} {number(best)}"] if best is not None else []
    if (tested := run.tested(run.metric)) is not None:
        note = f" ({summary['test_note']})" if "test_note" in summary else ""
        facts.append(f"{run.metric.replace('val/', 'test/')} {number(tested)}{note}")
    facts += [f"{summary['parameters']:,} parameters"] if "parameters" in summary else []
    facts += [duration(summary["seconds"])] if "seconds" in summary else []
    parts = [f"<h1>{html.escape(name)}</h1><p>{html.escape(', '.join(facts))}</p>"]
    parts.append(page.command(f"{called('run')} {join(run.overrides)}".strip()))
    parts += [page.chart(metric, curves, 340) for metric, curves in run_curves(run).items()]
    if pictures := _pictures(run, opened=True):
        parts.append(f"<h2>Figures</h2>{pictures}")
    parts.append(_origins([run], opened=True))
    lines = [[key, page.cell(value)] for key, value in run.config.items()]
    table = page.table(["key", "value"], lines)
    parts.append(f"<details><summary>Config</summary>{table}</details>")
    return page.document(name, "".join(parts))


def run_curves(run: RunData) -> dict[str, go.Figure]:
    """Draw loss, the monitored metric and others of a run by epoch, training and validation."""
    known = {key for event in run.history for key in event}
    validated = [key.partition("/")[2] for key in sorted(known) if key.startswith("val/")]
    monitored = run.metric.partition("/")[2]
    wanted = dict.fromkeys(["loss", monitored, "accuracy", *validated])
    shown = [n for n in wanted if n in validated and concise(f"val/{n}", run.metric)]
    figures = {}
    for metric in shown[:MOST_CURVES]:
        figure = go.Figure()
        splits = (("train", f"train/{metric}"), ("validation", f"val/{metric}"))
        for rank, (split, key) in enumerate(splits):
            curve = run.curve(key)
            mode = "lines" if len(curve) > 1 else "markers"
            look = {"line_color": page.COLOURS[rank], "showlegend": bool(curve)}
            figure.add_scatter(x=list(curve), y=list(curve.values()), mode=mode, name=split, **look)
        tested, best = run.tested(f"val/{metric}"), run.summary.get("best", {}).get("epoch")
        if tested is not None and best is not None:
            look = {"color": page.COLOURS[4], "symbol": "diamond", "size": 9}
            name = f"test {number(tested)}"
            figure.add_scatter(x=[best], y=[tested], mode="markers", name=name, marker=look)
        names = [trace.name for trace in figure.data]
        if unit := run.summary.get("units", {}).get(metric):
            figure.update_yaxes(title=unit)
        figures[metric] = page.name_ten(page.whole_steps(figure, "epoch"), names)
    return figures


def _terminal_table(kind: tuple[str, str, str], settings: Sequence[Setting]) -> Table:
    data, objective, metric = kind
    title = ", ".join(filter(None, [data, objective, "best first"]))
    table = Table(box=None, header_style="bold", title=title, title_justify="left")
    many = replicated(settings)
    table.add_column("setting", overflow="fold")  # a run must stay readable as a path
    if many:
        table.add_column("runs", justify="right")
    table.add_column(metric, justify="right")
    table.add_column(metric.replace("val/", "test/"), justify="right")
    if many:
        table.add_column("behind the best")
    for one in settings:
        names = dict.fromkeys([one.name, one.origin])
        scores = [spread(one.validation), spread(one.test)]
        counts = [str(len(one.runs))] * many
        behind = [difference(one, settings).partition(" (")[0]] * many
        table.add_row("\n".join(names), *counts, *scores, *behind)
    return table


def _left_out(found: Found) -> str:
    """Return `evaluations: 2, lessons: 1`."""
    return ", ".join(f"{what}: {count}" for what, count in found.left_out.items())


def _origins(runs: Sequence[RunData], *, opened: bool = False) -> str:
    """Return a table with a row per run, which a click unfolds: the code, machine and data."""
    lines = []
    for run in runs:
        if run.started:
            start, count = provenance.in_brief(run.started[-1]), len(run.started)
            code = start.pop("code") + (f", the last of {count} starts" if count > 1 else "")
            lines.append([run.name, code, *map(page.cell, start.values())])
    if not lines:
        return ""
    table = page.table(["run", "code", *start], lines)
    if opened:
        return f"<h2>Where it comes from</h2>{table}"
    return f"<details><summary>Where they come from</summary>{table}</details>"


def _pictures(run: RunData, *, opened: bool = False) -> str:
    """Return the figures of a run and the table of its classes, which a click unfolds."""
    classes: list[dict[str, Any]] = run.summary.get("classes", [])
    if not run.figures and not classes:
        return ""
    lines = [[page.cell(value) for value in row.values()] for row in classes]
    table = page.table(list(classes[0]), lines) if classes else ""
    images = "".join(
        f'<img alt="{html.escape(path.stem)}" title="{html.escape(path.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in run.figures
    )
    inside = f'<div class="figures">{images}</div>{table}'
    if opened:
        return inside
    return f"<details><summary>{html.escape(run.name)}</summary>{inside}</details>"
