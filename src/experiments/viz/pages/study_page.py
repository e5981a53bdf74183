"""The report of a study: an HTML page and PNGs, and studies compared.

Most charts are Optuna's own, in plotly for the page and in matplotlib for the PNGs. Pruned trials
appear in them with the last value that they reached. Of several metrics the front is drawn; the
other charts are of the first one.
"""

from __future__ import annotations

import functools
import html
import math
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
from matplotlib.ticker import LogLocator, MaxNLocator
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from experiments.tracking.terminal import concise, number
from experiments.viz.pages import comparison, page
from experiments.viz.pages.settings import Setting, spread

SHOWN = 20  # trials in the table
ENOUGH = 4  # trials from which the importance of parameters is estimated
AXIS = 95  # least pixels from one of the parallel coordinates to the next
TITLES = {  # in the order of the page
    "front": "Trials by {all}: the front, where none is beaten in all",
    "parallel_coordinates": "{} and parameters of each trial",
    "learning_curves": "Learning curves; darker is better",
    "slices": "{} by each parameter",
    "importance": "Importance of the parameters for {} (PED-ANOVA)",
    "contour": "{} by the two most important ranges of numbers",
    "history": "{} of each trial, and the best so far",
}
HEIGHTS = {"parallel_coordinates": 440, "learning_curves": 420, "contour": 480}  # others 340 pixels


@dataclass(frozen=True)
class StudyData:
    """A study as its report shows it.

    Attributes:
        study: the trials of the budget by number. Those with values are complete, their
            parameters are values of the config without the seed, their intermediate values the
            first metric by evaluation, and their user attributes `state` and, where known,
            `seconds` and `reason`.
        method: how values were drawn, such as `random`.
        metric: what was searched for first, such as `val/accuracy`.
        command: the command line that runs the best trial or setting again.
        tested: the `test/*` metrics of the best trial.
        note: what a test result is to be read with.
        settings: where there are replicates: what is compared in the place of trials.
        varies_seed: whether trials that differ in nothing but their seed are replicates.
    """

    study: optuna.Study
    method: str
    metric: str
    command: str | None = None
    tested: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    settings: Sequence[Setting] = ()
    varies_seed: bool = False

    @property
    def metrics(self) -> list[str]:
        """All that was searched for."""
        return self.study.metric_names or [self.metric]

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def minimized(self) -> bool:
        """Whether a smaller value of the first metric is better."""
        return self.study.directions[0] == optuna.study.StudyDirection.MINIMIZE

    @functools.cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The trials that have values, best first; of several metrics the front before others."""
        sign = 1 if self.minimized else -1
        valued = [trial for trial in self.trials if trial.values]
        front = {t.number for t in self.study.best_trials} if len(self.metrics) > 1 else set()
        return sorted(valued, key=lambda t: (t.number not in front, sign * t.values[0]))

    @functools.cached_property
    def finished(self) -> list[list[FrozenTrial]]:
        """The trials that have ended, in order; those that are replicates of one together."""
        found: dict[Any, list[FrozenTrial]] = {}
        for trial in (trial for trial in self.trials if trial.state.is_finished()):
            key = repr(sorted(trial.params.items())) if self.varies_seed else trial.number
            found.setdefault(key, []).append(trial)
        return list(found.values())

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
    """Return the page: the best trial or setting, a table of the best ones, and the charts."""
    body = _head(data)
    body += comparison.section(data.settings) if data.settings else _table(data)
    if not data.ranked:
        return page.document(data.study.study_name, body)
    charts = _optuna_charts(data, optuna.visualization) if data.varied or not data.settings else {}
    if not data.settings:
        charts["learning_curves"] = learning_curves(data)
    described = {trial.number: _description(trial) for trial in data.ranked}
    for name, figure in charts.items():
        if name.startswith("history"):
            points = figure.data[0]
            points.update(text=[described[n] for n in points.x], hoverinfo="text+y")
            figure.update_traces(line_shape="hv", selector={"mode": "lines"})
            figure.update_layout(legend={"orientation": "h", "y": 1, "yanchor": "bottom"})
            page.whole_steps(figure, "trial")
    if "slices" in charts:
        for trace in charts["slices"].data:
            trace.update(text=[described[n] for n in trace.marker.color], hoverinfo="text+y")
            trace.x = [x.strip("'") if isinstance(x, str) else x for x in trace.x]
        for axis in charts["slices"].select_xaxes():
            axis.categoryarray = [str(x).strip("'") for x in axis.categoryarray or ()] or None
        last = max(trial.number for trial in data.ranked)
        key = {"title": "trial", "tickvals": sorted({0, last // 2, last})}
        charts["slices"].update_xaxes(tickfont_size=11).update_traces(marker_colorbar=key)
    if "parallel_coordinates" in charts:
        relabel(charts["parallel_coordinates"], data)
    widths = {
        "parallel_coordinates": AXIS * (len(data.varied) + 1),
        "slices": 220 * len(data.varied),
    }
    for kind, title in TITLES.items():
        for name in (name for name in charts if name.partition("_of_")[0] == kind):
            metric = name.partition("_of_")[2] or data.metric
            heading = title.format(metric, all=" and ".join(data.metrics))
            height, width = HEIGHTS.get(kind, 340), widths.get(kind, 0)
            body += page.chart(heading, charts[name], height, width if width > 400 else 0)
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
    drawn = {name.replace("/", "_"): axes for name, axes in drawn.items()}
    figures = {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}
    for figure in figures.values():
        for ax in figure.axes:
            ax.grid(visible=False, which="both")
            ax.set_facecolor("none")  # axes of parallel coordinates lie on each other
            ax.spines[:].set_color(page.INK)
    figures["learning_curves"] = Figure(figsize=(6, 4), layout="constrained")
    ax = figures["learning_curves"].subplots()
    for trial, colour in worst_first(data):
        curve = trial.intermediate_values
        style, width = "-" if len(curve) > 1 else ".", 2.5 if trial is data.ranked[0] else 1.2
        ax.plot(curve.keys(), curve.values(), style, color=colour, linewidth=width)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="evaluation", ylabel=data.metric, title=TITLES["learning_curves"])
    return figures


def learning_curves(data: StudyData) -> go.Figure:
    """Draw the metric of every trial by evaluation, coloured by rank, the best on top."""
    figure = go.Figure()
    for trial, colour in worst_first(data):
        epochs, values = list(trial.intermediate_values), list(trial.intermediate_values.values())
        mode = "lines" if len(epochs) > 1 else "markers"
        line = {"color": colour, "width": 3 if trial is data.ranked[0] else 1.3}
        shown = {"text": _description(trial), "hoverinfo": "x+y+text"}
        figure.add_scatter(x=epochs, y=values, mode=mode, line=line, **shown)
    figure.update_layout(yaxis_title=data.metric, showlegend=False)
    return page.whole_steps(figure, "evaluation")


def _optuna_charts(data: StudyData, plots: ModuleType) -> dict[str, Any]:
    """Return the charts that a study has data for, of `optuna.visualization` or its `matplotlib`.

    They are plotly figures or matplotlib axes, by the name of their file; of further metrics than
    the first the name ends in `_of_<metric>`.
    """
    study, varied, charts = data.study, list(data.varied), dict[str, Any]()
    if len(data.metrics) in (2, 3):
        charts["front"] = plots.plot_pareto_front(study, target_names=list(data.metrics))
    for index, metric in enumerate(data.metrics):
        end = f"_of_{metric}" if index else ""
        value: dict[str, Any] = {"target_name": metric}
        if len(data.metrics) > 1:
            value["target"] = functools.partial(_value, index=index, sign=1)
        charts[f"history{end}"] = plots.plot_optimization_history(study, **value)
        if varied and len(data.ranked) >= ENOUGH:
            with warnings.catch_warnings():  # that targets are to be small, which these are
                warnings.filterwarnings("ignore", "PedAnova", UserWarning)
                charts[f"importance{end}"] = plots.plot_param_importances(
                    study, params=varied, **value | _to_minimize(data, index)
                )
        if index or not varied:
            continue
        charts["slices"] = plots.plot_slice(study, varied, **value)
        if len(varied) > 1:
            charts["parallel_coordinates"] = plots.plot_parallel_coordinate(study, varied, **value)
        if pair := _pair(data):
            charts["contour"] = plots.plot_contour(study, pair, **value)
    return charts


def _pair(data: StudyData) -> list[str]:
    """Return the two most important ranges of numbers; none without two, and trials of both."""
    if len(data.ranges) < 2 or len(data.ranked) < ENOUGH:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PedAnova", UserWarning)
        importance = optuna.importance.get_param_importances(
            data.study, params=list(data.varied), **_to_minimize(data, 0)
        )
    pair = [name for name in importance if name in data.ranges][:2]
    both = [trial for trial in data.ranked if set(pair) <= trial.params.keys()]
    return pair if len(pair) == 2 and len(both) >= ENOUGH else []


def _to_minimize(data: StudyData, index: int) -> dict[str, Any]:
    """Return what the importance for one of several metrics is of: what is to become small."""
    if len(data.metrics) == 1:
        return {}
    sign = 1 if data.study.directions[index] == optuna.study.StudyDirection.MINIMIZE else -1
    return {"target": functools.partial(_value, index=index, sign=sign)}


def _value(trial: FrozenTrial, index: int, sign: int) -> float:
    return sign * trial.values[index]


def worst_first(data: StudyData) -> list[tuple[FrozenTrial, str]]:
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
    if data.settings:
        best = data.settings[0]
        which = f"Best on average: {best.name}" if best.values else f"{len(best.runs)} seeds"
        parts.append(f"<p>{html.escape(f'{which}, {data.metric}')} {spread(best.validation)}</p>")
    elif data.ranked and len(data.metrics) == 1:
        trial = data.ranked[0]
        own = data.metric.partition("/")[2]
        tested = {name: value for name, value in data.tested.items() if concise(name, own)}
        scores = {data.metric: trial.values[0], **tested}
        shown = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
        parts.append(f"<p>Best: trial {trial.number}, {html.escape(shown)}</p>")
        parts += [f'<p class="faint">{html.escape(data.note)}</p>'] if data.note else []
    if data.command:
        parts.append(page.command(data.command))
    attributes = [trial.user_attrs for trial in trials if not trial.values]
    reasons = Counter(found["reason"] for found in attributes if found.get("reason"))
    parts += [f"<p>{n} x {html.escape(reason)}</p>" for reason, n in reasons.most_common(3)]
    return "".join(parts)


def _table(data: StudyData) -> str:
    names = ["trial", *data.metrics, *data.varied, "seconds"]
    several = len(data.metrics) > 1
    best = data.study.best_trials if several and data.ranked else data.ranked
    lines = []
    for trial in data.ranked[: max(SHOWN, len(best) if several else 0)]:
        values = [page.cell(trial.params.get(name, "")) for name in data.varied]
        seconds = trial.user_attrs.get("seconds")
        time = "" if seconds is None else f"{seconds:.1f}"
        lines.append([str(trial.number), *map(number, trial.values), *values, time])
    title = f"Best {len(lines)} trials" if lines else "No trial has a value yet"
    if several and lines:
        title = f"The front, of {len(best)} trials, and others"
    return f"<h2>{title}</h2>{page.table(names, lines)}"


def relabel(figure: go.Figure, data: StudyData) -> None:
    """Give Optuna's parallel coordinates whole names and round ticks."""
    names = [data.metric, *sorted(data.varied)]
    figure.update_xaxes(ticktext=names, showline=False)
    ranges = {data.metric: False, **data.ranges}
    for place, name in enumerate(names):
        if name not in ranges:  # its ticks are its choices
            continue
        known = [t.values[0] if place == 0 else t.params.get(name) for t in data.ranked]
        ticks = _round_ticks([value for value in known if value is not None], log=ranges[name])
        own = [one for one in figure.layout.annotations if one.x == place]
        others = [one for one in figure.layout.annotations if one.x != place]
        look = {k: v for k, v in own[0].to_plotly_json().items() if k not in ("text", "y")}
        new = [{**look, "text": f"{tick:g}", "y": y} for tick, y in ticks.items()]
        figure.layout.annotations = [*others, *new]


def _round_ticks(values: Sequence[float], *, log: bool) -> dict[float, float]:
    """Return round numbers within the range of values, and where they are on it, from 0 to 1."""
    low, high = min(values), max(values)
    if low == high:
        return {low: 0.0}
    scale = math.log10 if log else float
    locator = LogLocator(subs=(1.0, 2.0, 5.0)) if high < 100 * low else LogLocator()
    ticks = (locator if log else MaxNLocator(5)).tick_values(low, high)
    within = [float(tick) for tick in ticks if low <= tick <= high]
    return {t: (scale(t) - scale(low)) / (scale(high) - scale(low)) for t in within}
