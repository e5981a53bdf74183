"""A folder of runs as one HTML page: their curves, what they differ in, and their figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import plotly.graph_objects as go

from experiments.tracking.terminal import number
from experiments.viz import page
from experiments.viz.runs_data import RunData, differences, families, replicates

PICTURED = 24  # runs of a family whose figures are in the page; each weighs some 100 kB


def runs_page(title: str, runs: Sequence[RunData]) -> str:
    """The page; runs that were judged by different metrics stand in sections of their own."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="faint">{len(runs)} runs</p>']
    for family in families(runs):
        metric = family[0].metric
        parts.append(f"<h2>{html.escape(metric)}: {len(family)} runs, best first</h2>")
        parts.append(comparison(family))
        if groups := replicates(family):
            parts.append("<h2>Replicates: the same but for the seed</h2>")
            names = differences([group.runs[0] for group in groups])
            head = ["first of them", "runs", "mean", "± std", "smallest", "largest", *names]
            lines = []
            for group in groups:
                first = group.runs[0]
                spread = map(number, group.spread())
                values = [page.cell(first.config.get(name, "")) for name in names]
                lines.append([first.name, str(len(group.runs)), *spread, *values])
            parts.append(page.table(head, lines))
        if any(run.curve[0] for run in family):
            parts.append("<h2>Learning curves</h2>" + page.chart(learning_curves(family)))
        parts.append("<h2>Figures</h2>" + "".join(map(pictures, family[:PICTURED])))
        if len(family) > PICTURED:
            parts.append(f'<p class="faint">of the best {PICTURED} of {len(family)}</p>')
    return page.document(title, "".join(parts))


def comparison(runs: Sequence[RunData]) -> str:
    """A row a run: how it ended, what it came to, and the values in which the runs differ."""
    names = differences(runs)
    metric = runs[0].metric
    head = ["run", "status", f"best {metric}", "test", "epoch", "seconds", "parameters", *names]
    lines = []
    for run in runs:
        best, summary = run.summary.get("best", {}), run.summary
        told = (run.value, run.tested, best.get("epoch"), summary.get("seconds"))
        numbers = ["" if value is None else number(value) for value in told]
        parameters = f"{summary.get('parameters', ''):,}" if "parameters" in summary else ""
        values = [page.cell(run.config.get(name, "")) for name in names]
        lines.append([run.name, str(summary.get("status")), *numbers, parameters, *values])
    return page.table(head, lines)


def learning_curves(runs: Sequence[RunData]) -> go.Figure:
    """The metric of every run by epoch; a click on a name hides it."""
    figure = go.Figure()
    for run in runs:
        epochs, values = run.curve
        mode = "lines" if len(epochs) > 1 else "markers"
        figure.add_scatter(x=epochs, y=values, mode=mode, name=run.name)
    return page.laid_out(
        figure, 420, xaxis_title="epoch", yaxis_title=runs[0].metric, showlegend=True
    )


def pictures(run: RunData) -> str:
    """The figures of a run, folded away."""
    images = "".join(
        f'<img alt="{html.escape(path.stem)}" title="{html.escape(path.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in run.figures
    )
    if not images:
        return ""
    name = html.escape(run.name)
    return f'<details><summary>{name}</summary><div class="figures">{images}</div></details>'
