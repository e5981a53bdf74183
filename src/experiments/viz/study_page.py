"""The report of a study as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

import html
import math
from collections import Counter
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from experiments.tracking.terminal import number
from experiments.viz import page
from experiments.viz.study_data import Axis, StudyData

SHOWN = 20  # trials in the table
SCALE = "Viridis"  # the best trial is the darkest
TICKS = 5  # labels of a range in the parallel coordinates


def study_page(data: StudyData) -> str:
    """The page: the best trial, the table of the top, and a figure for each question."""
    charts: list[tuple[str, go.Figure]] = []
    if data.ranked:
        if len(data.varied) > 1:
            charts.append(("Parallel coordinates", parallel_coordinates(data)))
        charts.append(("Learning curves", learning_curves(data)))
        charts += [(f"{axis.name}", slice_of(data, axis)) for axis in data.varied]
    if data.importance:
        charts.append(("Importance", importance(data)))
    charts.append(("History", history(data)))
    body = "".join(f"<h2>{html.escape(title)}</h2>{page.chart(figure)}" for title, figure in charts)
    return page.document(data.name, _head(data) + _table(data) + body)


def parallel_coordinates(data: StudyData) -> go.Figure:
    """Each trial as a line through its values; drag along an axis to select."""
    ranked = data.ranked
    dimensions = [_dimension(axis, data) for axis in data.varied]
    dimensions.append({"label": data.metric, "values": [row.value for row in ranked]})
    ranks = list(range(1, len(ranked) + 1))
    line = {"color": ranks, "colorscale": SCALE}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelfont={"size": 13}))
    return page.laid_out(figure, 420, margin={"l": 90, "r": 90, "t": 70, "b": 30})


def learning_curves(data: StudyData) -> go.Figure:
    """The metric of every trial by epoch, coloured by rank, the best on top."""
    figure = go.Figure()
    ranked = data.ranked
    for rank, row in reversed(list(enumerate(ranked))):
        figure.add_scatter(
            x=row.curve[0],
            y=row.curve[1],
            mode="lines" if len(row.curve[0]) > 1 else "markers",
            name=f"trial {row.number}",
            line={"color": _shade(rank, len(ranked)), "width": 3 if rank == 0 else 1.3},
            hovertext=_overrides(row.values),
            hoverinfo="name+x+y+text",
        )
    return page.laid_out(
        figure, 420, xaxis_title="epoch", yaxis_title=data.metric, showlegend=False
    )


def slice_of(data: StudyData, axis: Axis) -> go.Figure:
    """The value of each trial against one parameter."""
    ranked = [(rank, row) for rank, row in enumerate(data.ranked) if axis.name in row.values]
    shown = [row.values[axis.name] for _, row in ranked]
    figure = go.Figure()
    figure.add_scatter(
        x=shown if axis.choices is None else [str(value) for value in shown],
        y=[row.value for _, row in ranked],
        mode="markers",
        marker={"size": 9, "color": [_shade(rank, len(data.ranked)) for rank, _ in ranked]},
        text=[f"trial {row.number}<br>{_overrides(row.values)}" for _, row in ranked],
        hoverinfo="text+y",
    )
    figure.update_xaxes(title=axis.name, type="log" if axis.log else None)
    if axis.log:
        figure.update_xaxes(exponentformat="power", dtick=1)
    if axis.choices is not None:
        order = [str(choice) for choice in axis.choices]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return page.laid_out(figure, 340, yaxis_title=data.metric)


def importance(data: StudyData) -> go.Figure:
    """The share of each parameter in what set the best trials apart."""
    names = list(data.importance)[::-1]
    shares = [data.importance[name] for name in names]
    figure = go.Figure(go.Bar(x=shares, y=names, orientation="h", marker={"color": "#4878a8"}))
    figure.update_xaxes(range=[0, 1], title="share (PED-ANOVA)")
    return page.laid_out(
        figure, 120 + 34 * len(names), margin={"l": 200, "r": 30, "t": 20, "b": 50}
    )


def history(data: StudyData) -> go.Figure:
    """The value of each trial in their order, and the best so far."""
    valued = [row for row in data.rows if row.value is not None]
    numbers = [row.number for row in valued]
    figure = go.Figure()
    figure.add_scatter(
        x=numbers,
        y=[row.value for row in valued],
        mode="markers",
        name="trial",
        marker={"color": page.FAINT},
        text=[_overrides(row.values) for row in valued],
    )
    best = data.best_so_far()[1]
    figure.add_scatter(
        x=numbers, y=best, mode="lines", name="best so far", line={"color": page.INK, "shape": "hv"}
    )
    return page.laid_out(figure, 340, xaxis_title="trial", yaxis_title=data.metric)


def _head(data: StudyData) -> str:
    counts = Counter(row.state for row in data.rows)
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    parts = [
        f"<h1>{html.escape(data.name)}</h1>",
        f'<p class="faint">{data.method} search of {data.budget} trials: {told}</p>',
    ]
    if data.ranked and data.command:
        best = data.ranked[0]
        scores = {data.metric: best.value or 0.0} | data.tested
        shown = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        parts.append(f"<p>Best: trial {best.number}, {html.escape(shown)}</p>")
        parts.append(f"<pre>{html.escape(data.command)}</pre>")
    reasons = Counter(row.reason for row in data.rows if row.reason and row.value is None)
    parts += [f"<p>{n} x {html.escape(reason)}</p>" for reason, n in reasons.most_common(3)]
    return "".join(parts)


def _table(data: StudyData) -> str:
    names = ["trial", data.metric, *(axis.name for axis in data.varied), "seconds"]
    lines = []
    for row in data.ranked[:SHOWN]:
        values = [page.cell(row.values.get(axis.name, "")) for axis in data.varied]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append([str(row.number), number(row.value or 0.0), *values, seconds])
    title = f"Best {min(SHOWN, len(data.ranked))} trials" if lines else "No trial has a value yet"
    return f"<h2>{title}</h2>{page.table(names, lines)}"


def _dimension(axis: Axis, data: StudyData) -> dict[str, Any]:
    """An axis of the parallel coordinates; a trial without the parameter lies below it."""
    here = [
        axis.position(row.values[axis.name]) if axis.name in row.values else None
        for row in data.ranked
    ]
    if axis.log:
        here = [None if x is None else math.log10(x) for x in here]
    seen = [x for x in here if x is not None] or [0.0]
    low, high = min(seen), max(seen)
    if axis.choices is not None:
        low, high = 0.0, float(len(axis.choices) - 1)
        ticks = [float(i) for i in range(len(axis.choices))]
        labels = [str(choice) for choice in axis.choices]
    else:
        ticks = [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)]
        labels = [f"{10**x if axis.log else x:.2g}" for x in ticks]
    below = low - 0.15 * ((high - low) or 1.0)
    if len(seen) < len(here):
        ticks, labels, low = [below, *ticks], ["absent", *labels], below
    return {
        "label": axis.name,
        "values": [below if x is None else x for x in here],
        "tickvals": ticks,
        "ticktext": labels,
        "range": [low, high if high > low else low + 1],
    }


def _shade(rank: int, count: int) -> str:
    return sample_colorscale(SCALE, [rank / max(count - 1, 1)])[0]


def _overrides(values: dict[str, Any]) -> str:
    return "<br>".join(html.escape(f"{name}={value}") for name, value in values.items())
