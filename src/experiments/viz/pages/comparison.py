"""Settings compared: means and deviations over seeds as a table, error bars and curves."""

import html
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import plotly.graph_objects as go

from experiments.viz.pages import page
from experiments.viz.pages.records import cell
from experiments.viz.pages.settings import Setting, difference, replicated, spread

BARS = 30  # most settings in a figure of error bars
NOTE = "Mean ± standard deviation over runs that differ in their seed alone. "
BEHIND = (
    "Behind the best: the 95 % interval (Welch) of the difference of the means on the validation "
    "split; it is more than noise where the interval leaves out 0. No allowance is made for how "
    "many are compared."
)


def rows(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """Return the head of a table, and a row of text per setting: what differs comes first."""
    names, metric = list(settings[0].values), settings[0].metric
    several, statuses = len(settings) > 1, {status_of(one) for one in settings}
    many = replicated(settings)
    unfinished, origins = statuses != {"finished"}, len({one.origin for one in settings}) > 1
    head = [*names, *["runs"] * many, metric, metric.replace("val/", "test/")]
    head += [*["behind the best"] * (many and several), "epoch", "seconds", "parameters"]
    head += [*["status"] * unfinished, *["from"] * origins]
    lines = []
    for one in settings:
        line = [cell(value) for value in one.values.values()]
        line += [*[str(len(one.runs))] * many, spread(one.validation), spread(one.test)]
        line += [difference(one, settings)] * (many and several)
        line += [_mean(one, "epoch", best=True), _mean(one, "seconds"), _mean(one, "parameters")]
        line += [*[status_of(one)] * unfinished, *[one.origin] * origins]
        lines.append(line)
    return head, lines


def status_of(setting: Setting) -> str:
    """Return the status of its runs, the commonest first."""
    found = [str(run.summary.get("status")) for run in setting.runs]
    return ", ".join(sorted(dict.fromkeys(found), key=found.count, reverse=True))


def section(settings: Sequence[Setting]) -> str:
    """Return the table, the error bars where there are replicates, and the learning curves."""
    parts = [page.table(*rows(settings))]
    runs = [run for one in settings for run in one.runs]
    notes = {str(run.summary["test_note"]): None for run in runs if "test_note" in run.summary}
    parts += [f'<p class="faint">{html.escape(note)}</p>' for note in notes]
    if replicated(settings):
        parts.append(f'<p class="faint">{NOTE}{BEHIND * (len(settings) > 1)}</p>')
        bars = error_bars(settings[:BARS])
        height, width = (
            120 + 34 * min(len(settings), BARS),
            300 + 7 * max(map(len, _names(settings))),
        )
        parts.append(page.chart("Means and standard deviations over seeds", bars, height, width))
    if any(run.curve(one.metric) for one in settings for run in one.runs):
        parts.append(page.chart("Learning curves", learning_curves(settings), 460))
    return "".join(parts)


def error_bars(settings: Sequence[Setting]) -> go.Figure:
    """Draw mean and deviation of validation and test per setting, the best on top."""
    figure, names = go.Figure(), _names(settings)
    splits = (("validation", page.COLOURS[0], "circle"), ("test", page.COLOURS[4], "diamond"))
    for split, colour, symbol in splits:
        known = [(name, getattr(one, split)) for name, one in zip(names, settings, strict=True)]
        known = [(name, values) for name, values in known if values]
        error: dict[str, Any] = {"type": "data", "thickness": 1.5}
        error["array"] = [stdev(v) if len(v) > 1 else 0.0 for _, v in known]
        figure.add_scatter(
            x=[fmean(values) for _, values in known],
            y=[name for name, _ in known],
            error_x=error,
            mode="markers",
            name=split,
            marker={"color": colour, "symbol": symbol, "size": 9},
        )
    order = {"categoryorder": "array", "categoryarray": names[::-1], "type": "category"}
    figure.update_yaxes(range=[-0.6, len(names) - 0.4], **order)
    figure.update_xaxes(title=settings[0].metric.partition("/")[2])
    return page.name_ten(figure, [split for split, _, _ in splits])


def learning_curves(settings: Sequence[Setting]) -> go.Figure:
    """Draw the metric of every setting by epoch: the mean of its runs, a band of ± a deviation."""
    figure, names = go.Figure(), _names(settings)
    for rank, (name, one) in reversed(list(enumerate(zip(names, settings, strict=True)))):
        curves = [curve for run in one.runs if (curve := run.curve(one.metric))]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        if not epochs:
            continue
        colour, group = page.colour_of(rank), str(rank)
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        means = [fmean(each) for each in values]
        if len(curves) > 1:
            page.band(figure, epochs, means, [stdev(v) for v in values], colour, name, group)
        mode = "lines" if len(epochs) > 1 else "markers"
        line = {"color": colour, "width": 2.5 if rank == 0 else 1.5}
        place = {"legendgroup": group, "legendrank": rank}
        figure.add_scatter(x=epochs, y=means, mode=mode, name=name, line=line, **place)
    figure.update_yaxes(title=settings[0].metric)
    return page.name_ten(page.whole_steps(figure, "epoch"), names)


def _names(settings: Sequence[Setting]) -> list[str]:
    """Return a name for each setting, which no other has."""
    names = [one.name for one in settings]
    pairs = zip(names, settings, strict=True)
    return [f"{n} ({one.origin})" if names.count(n) > 1 else n for n, one in pairs]


def _mean(setting: Setting, name: str, *, best: bool = False) -> str:
    summaries = [run.summary.get("best", {}) if best else run.summary for run in setting.runs]
    values = [s[name] for s in summaries if isinstance(s.get(name), int | float)]
    mean = fmean(values) if values else 0.0
    return "" if not values else f"{mean:,.0f}" if name == "parameters" else f"{mean:.4g}"
