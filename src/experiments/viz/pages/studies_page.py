"""Studies compared at equal budget: a page with a test of their difference, and a figure."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean, median, stdev

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from experiments.tracking.terminal import number
from experiments.viz.pages import page
from experiments.viz.pages.settings import spread
from experiments.viz.pages.statistics import interval_of_difference, rank_test
from experiments.viz.pages.study_page import StudyData, worst_first

NOISE = 0.05  # the probability below which a difference counts as more than noise
REPEAT = (
    "One study of each says nothing of how much their best values depend on chance. To compare "
    "these, repeat the studies with other seeds (seed=1) and name all of them."
)


@dataclass(frozen=True)
class Studies:
    """Studies that differ in nothing but their seed, or one.

    Attributes:
        label: what sets them apart from the others.
        members: one or more.
        budget: the trials of each that are compared: the first ones. Replicates, which are
            trials that differ in their seed alone, count as one.
    """

    label: str
    members: Sequence[StudyData]
    budget: int

    @cached_property
    def values(self) -> list[list[float]]:
        """The values of the trials of each, in order, of those that have one.

        That of replicates is their median, as a search with `seeds` has it.
        """
        trials = (one.finished[: self.budget] for one in self.members)
        valued = ([[t.values[0] for t in same if t.values] for same in some] for some in trials)
        return [[median(values) for values in some if values] for some in valued]

    @property
    def unit(self) -> str:
        """The word for what the budget counts."""
        return "trial" if self.budget == 1 else "trials"

    @property
    def together(self) -> list[float]:
        """The values of all their trials."""
        return [value for some in self.values for value in some]

    @property
    def best(self) -> list[float]:
        """The best value of each at this budget."""
        choose = min if self.members[0].minimized else max
        return [choose(values) for values in self.values if values]

    @property
    def best_so_far(self) -> list[np.ndarray]:
        """The best value of each after every trial."""
        choose = np.minimum if self.members[0].minimized else np.maximum
        return [choose.accumulate(values) for values in self.values if values]


def side_by_side(labels: Sequence[str], studies: Sequence[StudyData]) -> list[Studies]:
    """Group studies by what sets them apart, and cut all to the smallest number of trials."""
    budget = min(len(one.finished) for one in studies)
    members: dict[str, list[StudyData]] = {label: [] for label in labels}
    for label, study in zip(labels, studies, strict=True):
        members[label].append(study)
    return [Studies(label, some, budget) for label, some in members.items()]


def verdicts(compared: Sequence[Studies]) -> list[str]:
    """Return a sentence per pair: which is better, and whether by more than noise."""
    return [_verdict(a, b) for a, b in combinations(compared, 2)]


def _verdict(a: Studies, b: Studies) -> str:
    if not (a.best and b.best):
        return f"{a.label} and {b.label}: one of them has no trial with a value."
    if min(len(a.best), len(b.best)) > 1:
        low, high = interval_of_difference(a.best, b.best)
        if math.isinf(high):
            return f"{a.label} against {b.label}: each ends alike, and too few times to tell."
        noise = "within noise" if low <= 0 <= high else "more than noise"
        return (
            f"{a.label} against {b.label}: their best values differ by {(low + high) / 2:.2g} on "
            f"average, 95 % interval {low:.2g} to {high:.2g} (Welch): {noise}."
        )
    likely = rank_test(a.together, b.together)
    middle = [median(one.together) for one in (a, b)]
    if middle[0] == middle[1]:
        return f"The trials of {a.label} and of {b.label} are alike at the median. {REPEAT}"
    first = (middle[0] <= middle[1]) == a.members[0].minimized
    better, worse = (a, b) if first else (b, a)
    noise = "more than noise" if likely < NOISE else "within noise"
    return (
        f"The trials of {better.label} are better than those of {worse.label} at the median, "
        f"p = {likely:.2g} (Mann-Whitney): {noise}. {REPEAT}"
    )


def studies_page(title: str, compared: Sequence[Studies]) -> str:
    """Return the page: a table, what follows from it, and the best value after each trial."""
    metric, budget = compared[0].members[0].metric, compared[0].budget
    names = ["studies", "number", f"best {metric}", "median of all trials", "seconds a study"]
    lines = []
    for one in compared:
        seconds = [
            sum(t.user_attrs.get("seconds") or 0.0 for same in m.finished[:budget] for t in same)
            for m in one.members
        ]
        middle = number(median(one.together)) if one.together else ""
        line = [one.label, str(len(one.members)), spread(one.best), middle]
        lines.append([*line, f"{fmean(seconds):.0f}"])
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="faint">studies at equal budget: of each the first '
        f"{budget if budget > 1 else ''} {compared[0].unit}; seeds of the same values are one</p>",
        page.table(names, lines),
        *(f"<p>{html.escape(sentence)}</p>" for sentence in verdicts(compared)),
        page.chart(f"Best {metric} so far", best_so_far(compared), 420),
    ]
    return page.document(title, "".join(parts))


def best_so_far(compared: Sequence[Studies]) -> go.Figure:
    """Draw the best value after each trial: the mean of studies in a band of ± a deviation."""
    figure = go.Figure()
    for rank, one in enumerate(compared):
        count = min(map(len, one.best_so_far), default=0)
        each = [list(values) for values in zip(*(c[:count] for c in one.best_so_far), strict=True)]
        x, colour = list(range(1, count + 1)), page.colour_of(rank)
        means = [fmean(values) for values in each]
        if len(one.members) > 1:
            deviations = [stdev(values) for values in each]
            page.band(figure, x, means, deviations, colour, one.label)
        line = {"color": colour, "shape": "hv"}
        figure.add_scatter(x=x, y=means, mode="lines", name=one.label, line=line)
    figure.update_yaxes(title=compared[0].members[0].metric)
    return page.name_ten(page.whole_steps(figure, "trials"), [one.label for one in compared])


def studies_figure(compared: Sequence[Studies]) -> Figure:
    """Draw studies side by side: the points that each has tried, and its best value so far.

    The points are drawn along the first two ranges of numbers of the first study.
    """
    first = compared[0].members[0]
    shown = dict(list(first.ranges.items())[:2])
    panels = len(compared) if len(shown) == 2 else 0
    figure = Figure(figsize=(3.6 * (panels + 1), 3.6), layout="constrained")
    *maps, curves = figure.subplots(1, panels + 1, squeeze=False)[0]
    for ax, one in zip(maps, compared, strict=False):
        for trial, colour in worst_first(one.members[0]):
            if shown.keys() <= trial.params.keys():
                ax.plot(*(trial.params[name] for name in shown), "o", color=colour)
        for axis, (name, log) in zip("xy", shown.items(), strict=True):
            ax.set(**{f"{axis}label": name, f"{axis}scale": "log" if log else "linear"})
        ax.set_title(f"{one.label}: {one.budget} {one.unit}; darker is better", fontsize=9)
        ax.sharex(maps[0])
        ax.sharey(maps[0])
    for rank, one in enumerate(compared):
        for index, best in enumerate(one.best_so_far):
            label = None if index else f"{one.label}: {spread(one.best)}"
            colour = page.colour_of(rank)
            curves.step(range(1, len(best) + 1), best, where="post", label=label, color=colour)
    curves.legend(frameon=False, fontsize=8)
    curves.set_xlabel("trials")
    curves.set_title(f"best {first.metric} so far", fontsize=9)
    return figure
