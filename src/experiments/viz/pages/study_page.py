"""The report of a study: an HTML page and PNGs, and studies compared.

Most charts are Optuna's own, in plotly for the page and in matplotlib for the PNGs. Pruned trials
appear in them with the last value that they reached. Of several metrics the front is drawn; the
other charts are of the first one.
"""

from __future__ import annotations

import functools
import html
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import optuna
import plotly.graph_objects as go
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from experiments.tracking.terminal import number
from experiments.viz.pages import page

SHOWN = 20  # trials in the table
ENOUGH = 4  # trials from which the importance of parameters is estimated
TITLES = {  # in the order of the page
    "front": "The front: trials that no other one beats in each metric",
    "parallel_coordinates": "{} and parameters of each trial",
    "learning_curves": "Learning curves; darker is better",
    "slices": "{} by each parameter",
    "importance": "Importance of the parameters (PED-ANOVA)",
    "contour": "{} by the two most important ranges of numbers",
    "history": "{} of each trial, and the best so far",
}
HEIGHTS = {"parallel_coordinates": 440, "learning_curves": 420, "contour": 480}  # others 340 pixels


@dataclass(frozen=True)
class StudyData:
    """A study as its report shows it.

    Attributes:
        study: the trials of the budget by number. Those with a value are complete, their
            parameters are values of the config, their intermediate values the metric by evaluation,
            and their user attributes `state` and, where known, `seconds` and `reason`.
        method: how values were drawn, such as `random`.
        metric: the metric that was searched for, such as `val/accuracy`.
        command: the command line that runs the best trial again.
        tested: the `test/*` metrics of the best trial.
    """

    study: optuna.Study
    method: str
    metric: str
    command: str | None = None
    tested: Mapping[str, float] = field(default_factory=dict)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def minimized(self) -> bool:
        return self.study.directions[0] == optuna.study.StudyDirection.MINIMIZE

    @property
    def metrics(self) -> list[str]:
        """All metrics that were searched for; `metric` is the first."""
        return self.study.metric_names or [self.metric]

    @functools.cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The trials that have a value, best first."""
        sign = 1 if self.minimized else -1
        valued = [trial for trial in self.trials if trial.values]
        return sorted(valued, key=lambda trial: sign * trial.values[0])

    @functools.cached_property
    def varied(self) -> dict[str, BaseDistribution]:
        """The parameters of trials with a value, without those that have only one choice."""
        found = {name: d for trial in self.ranked for name, d in trial.distributions.items()}
        return {name: d for name, d in found.items() if not d.single()}

    @property
    def ranges(self) -> dict[str, bool]:
        """The varied parameters that are ranges of numbers, with True for a logarithmic scale."""
        return {
            name: distribution.log
            for name, distribution in self.varied.items()
            if isinstance(distribution, FloatDistribution | IntDistribution)
        }


def study_page(data: StudyData) -> str:
    """Return the page: the best trial, a table of the best ones, and the charts."""
    body = _head(data) + _table(data)
    if not data.ranked:
        return page.document(data.study.study_name, body)
    charts = _optuna_charts(data, optuna.visualization)
    charts["learning_curves"] = learning_curves(data)
    described = {trial.number: _description(trial) for trial in data.ranked}
    points = charts["history"].data[0]
    points.update(text=[described[n] for n in points.x], hoverinfo="text+y")
    charts["history"].update_traces(line_shape="hv", selector={"mode": "lines"})
    if "slices" in charts:
        for trace in charts["slices"].data:
            trace.update(text=[described[n] for n in trace.marker.color], hoverinfo="text+y")
        charts["slices"].update_xaxes(tickfont_size=11)
    if "parallel_coordinates" in charts:  # Optuna cuts long names off
        names = [data.metric, *sorted(data.varied)]
        charts["parallel_coordinates"].update_xaxes(ticktext=names, showline=False)
    for name, title in TITLES.items():
        if name in charts:
            body += page.chart(title.format(data.metric), charts[name], HEIGHTS.get(name, 340))
    return page.document(data.study.study_name, body)


def study_figures(data: StudyData) -> dict[str, Figure]:
    """Return the charts of the page as matplotlib figures, by file name."""
    if not data.ranked:
        return {}
    import optuna.visualization.matplotlib as plots

    matplotlib.use("agg")  # Optuna draws with pyplot, which might open windows
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        drawn = _optuna_charts(data, plots)
    figures = {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}
    for figure in figures.values():
        for ax in figure.axes:
            ax.grid(visible=False, which="both")
            ax.set_facecolor("none")  # axes of parallel coordinates lie on each other
            ax.spines[:].set_color(page.INK)
    figures["learning_curves"] = Figure(figsize=(6, 4), layout="constrained")
    ax = figures["learning_curves"].subplots()
    for trial, colour in _worst_first(data):
        curve = trial.intermediate_values
        style, width = "-" if len(curve) > 1 else ".", 2.5 if trial is data.ranked[0] else 1.2
        ax.plot(curve.keys(), curve.values(), style, color=colour, linewidth=width)
    ax.set(xlabel="evaluation", ylabel=data.metric, title=TITLES["learning_curves"])
    return figures


def learning_curves(data: StudyData) -> go.Figure:
    """Draw the metric of every trial by evaluation, coloured by rank, the best on top."""
    figure = go.Figure()
    for trial, colour in _worst_first(data):
        epochs, values = list(trial.intermediate_values), list(trial.intermediate_values.values())
        mode = "lines" if len(epochs) > 1 else "markers"
        line = {"color": colour, "width": 3 if trial is data.ranked[0] else 1.3}
        shown = {"text": [_description(trial)] * len(epochs), "hoverinfo": "x+y+text"}
        figure.add_scatter(x=epochs, y=values, mode=mode, line=line, **shown)
    return figure.update_layout(xaxis_title="evaluation", yaxis_title=data.metric, showlegend=False)


def comparison(studies: Sequence[StudyData]) -> Figure:
    """Draw studies side by side: the points that each has tried, and its best value so far.

    The points are drawn along the first two ranges of numbers of the first study.
    """
    shown = dict(list(studies[0].ranges.items())[:2])
    panels = len(studies) if len(shown) == 2 else 0
    figure = Figure(figsize=(3.6 * (panels + 1), 3.6), layout="constrained")
    *maps, curves = figure.subplots(1, panels + 1, squeeze=False)[0]
    for ax, data in zip(maps, studies, strict=False):
        for trial, colour in _worst_first(data):
            if shown.keys() <= trial.params.keys():
                ax.plot(*(trial.params[name] for name in shown), "o", color=colour)
        for axis, (name, log) in zip("xy", shown.items(), strict=True):
            ax.set(**{f"{axis}label": name, f"{axis}scale": "log" if log else "linear"})
        ax.set_title(f"{data.method}: {len(data.ranked)} trials; darker is better", fontsize=9)
        ax.sharex(maps[0])
        ax.sharey(maps[0])
    for data in studies:
        values = [trial.values[0] for trial in data.trials if trial.values]
        best = (np.minimum if data.minimized else np.maximum).accumulate(values)
        label = f"{data.method}: {best[-1]:.4g}" if values else data.method
        curves.step(range(1, len(values) + 1), best, where="post", label=label)
    curves.legend(frameon=False)
    curves.set_xlabel("trials")
    curves.set_title(f"best {studies[0].metric} so far", fontsize=9)
    return figure


def _optuna_charts(data: StudyData, plots: ModuleType) -> dict[str, Any]:
    """Return the charts that a study has data for, of `optuna.visualization` or its `matplotlib`.

    They are plotly figures or matplotlib axes, by the name of their file.
    """
    study, varied = data.study, list(data.varied)
    value: dict[str, Any] = {"target_name": data.metric}
    if len(data.metrics) > 1:
        value["target"] = lambda trial: trial.values[0]
    charts = {"history": plots.plot_optimization_history(study, **value)}
    if 1 < len(data.metrics) < 4:  # Optuna draws two or three
        charts["front"] = plots.plot_pareto_front(study, target_names=data.metrics)
    if varied:
        charts["slices"] = plots.plot_slice(study, varied, **value)
    if len(varied) > 1:
        charts["parallel_coordinates"] = plots.plot_parallel_coordinate(study, varied, **value)
    if varied and len(data.ranked) >= ENOUGH and len(data.metrics) == 1:
        charts["importance"] = plots.plot_param_importances(study, params=varied, **value)
        importance = optuna.importance.get_param_importances(study, params=varied)
        pair = [name for name in importance if name in data.ranges][:2]
        both = [trial for trial in data.ranked if set(pair) <= trial.params.keys()]
        if len(pair) == 2 and len(both) >= ENOUGH:
            charts["contour"] = plots.plot_contour(study, pair, **value)
    return charts


def _worst_first(data: StudyData) -> list[tuple[FrozenTrial, str]]:
    """Return the trials with a value and their colours, in an order that draws the best on top."""
    return list(zip(data.ranked, page.rank_colours(len(data.ranked)), strict=True))[::-1]


def _description(trial: FrozenTrial) -> str:
    lines = [f"trial {trial.number}", *(f"{k}={page.cell(v)}" for k, v in trial.params.items())]
    return "<br>".join(map(html.escape, lines))


def _head(data: StudyData) -> str:
    trials = data.trials
    counts = Counter(trial.user_attrs["state"] for trial in trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    parts = [
        f"<h1>{html.escape(data.study.study_name)}</h1>",
        f'<p class="faint">{data.method} search of {len(trials)} trials: {states}</p>',
    ]
    if data.ranked and data.command:
        best = data.ranked[0]
        scores = {data.metric: best.values[0], **data.tested}
        shown = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        parts.append(f"<p>Best: trial {best.number}, {html.escape(shown)}</p>")
        parts.append(f"<pre>{html.escape(data.command)}</pre>")
    attributes = [trial.user_attrs for trial in trials if not trial.values]
    reasons = Counter(found["reason"] for found in attributes if found.get("reason"))
    parts += [f"<p>{n} x {html.escape(reason)}</p>" for reason, n in reasons.most_common(3)]
    return "".join(parts)


def _table(data: StudyData) -> str:
    names = ["trial", *data.metrics, *data.varied, "seconds"]
    lines = []
    for trial in data.ranked[:SHOWN]:
        values = [page.cell(trial.params.get(name, "")) for name in data.varied]
        seconds = trial.user_attrs.get("seconds")
        time = "" if seconds is None else f"{seconds:.1f}"
        lines.append([str(trial.number), *map(number, trial.values), *values, time])
    title = f"Best {len(lines)} trials" if lines else "No trial has a value yet"
    return f"<h2>{title}</h2>{page.table(names, lines)}"
