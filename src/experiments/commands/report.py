"""The reports that the program `report` writes of studies."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.search.plan import Plan
from experiments.search.results import (
    command,
    screen,
    test_note,
    values_of,
    winner_of,
    write_results,
)
from experiments.search.space import in_optuna, path_of
from experiments.search.study import Study, name_metrics, state_of
from experiments.tracking.jsonl import METRICS, read_history
from experiments.viz import drawing
from experiments.viz.pages.records import UNIMPORTANT
from experiments.viz.pages.settings import replicated, spread, study_settings
from experiments.viz.pages.studies_page import (
    side_by_side,
    studies_figure,
    studies_page,
    verdicts,
)
from experiments.viz.pages.study_page import StudyData, study_figures, study_page

SEED = "seed"
# of a plan: what makes no other kind of study
ALIKE = frozenset(
    {
        *("directory", "storage", "heartbeat", "attempts", "side_by_side", "n_trials"),
        *("parameters", "overrides", "config_dir"),
    }
)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Plan)} | {"method": ""}
PAGE, FIGURES, COMPARISON = "report.html", "figures", "comparison.png"


def write_report(folder: Path, config_folder: Path) -> None:
    """Write the page and the figures of a study into its folder, and print how it stands."""
    study = Study(folder, config_folder)
    data = study_data(study)
    write_results(study, ended=True)
    (folder / FIGURES).mkdir(exist_ok=True)
    for name, figure in study_figures(data).items():
        drawing.save(figure, folder / FIGURES / f"{name}.png", dpi=130, bbox_inches="tight")
    write_whole(folder / PAGE, study_page(data))
    Console().print(screen(study))
    print(f"page        {folder / PAGE}, and PNGs in {folder / FIGURES}")


def write_comparison(folders: Sequence[Path], config_folder: Path, into: Path) -> None:
    """Compare studies at equal budget: a page and a figure in the folder `into`.

    Raises:
        UserError: they were not searched for the same metric.
    """
    studies = [Study(folder, config_folder) for folder in folders]
    if len({f"{study.plan.goal} {study.plan.metric}" for study in studies}) > 1:
        metrics = ", ".join(f"{s.plan.name}: {s.plan.goal} {s.plan.metric}" for s in studies)
        raise UserError(f"studies are compared by one metric, not by those of {metrics}")
    labels = labels_of([study.plan for study in studies])
    compared = side_by_side(labels, [study_data(study) for study in studies])
    title = " and ".join(one.label for one in compared)
    write_whole(into / PAGE, studies_page(title, compared))
    drawing.save(studies_figure(compared), into / COMPARISON, dpi=130)
    for one in compared:
        print(f"{one.label}: best {spread(one.best)} of {one.budget} {one.unit}")
    print(*verdicts(compared), sep="\n")
    print(f"page        {into / PAGE}, and {COMPARISON} beside it")


def labels_of(plans: Sequence[Plan]) -> list[str]:
    """Return what the plan of each study differs in from the others, or else its name."""
    flat = []
    for plan in plans:
        overrides = (override.partition("=") for override in plan.overrides)
        own = dataclasses.asdict(plan) | {key: value for key, _, value in overrides}
        own |= {f"{name} from": _drawn_from(values) for name, values in plan.parameters.items()}
        flat.append(
            {k: v for k, v in own.items() if not {k, k.partition(".")[0]} & (ALIKE | UNIMPORTANT)}
        )
    names = dict.fromkeys(key for own in flat for key in own)
    differing = [n for n in names if len({repr(own.get(n)) for own in flat}) > 1]
    labels = []
    for own, plan in zip(flat, plans, strict=True):
        said = [n for n in differing if n in own and own[n] not in (None, "null")]
        changed = [n for n in said if n not in DEFAULTS or own[n] != DEFAULTS[n]]
        labels.append(", ".join(f"{n}={own[n]}" for n in changed or said) or plan.name)
    return labels


def _drawn_from(values: Any) -> str:
    """Return what a parameter is drawn from, in a few characters where it is a list."""
    listed = values.get("values") if isinstance(values, Mapping) else None
    return f"[{','.join(map(str, listed))}]" if listed else str(values)


def study_data(study: Study) -> StudyData:
    """Return what a report shows of a study, with the histories of its runs."""
    best, winner = study.best(), winner_of(study)
    settings = study_settings(study.folder, study.folder)
    return StudyData(
        study=_copy(study),
        method=study.plan.method,
        metric=study.plan.metric[0],
        command=None if best is None else command(study, best),
        tested={k: v for k, v in winner.items() if k.startswith("test/")},
        settings=settings if replicated(settings) else (),
        note=test_note(study, best) if best else "",
        varies_seed=SEED in study.space.paths,
    )


def _copy(study: Study) -> optuna.Study:
    """Return a copy in memory for Optuna's charts: they show complete trials and drawn numbers.

    In the copy every trial that has a value is complete, a pruned one too, and its numbers are
    those of its config. The seed is no hyperparameter.
    """
    trials = study.trials()
    values = [{k: v for k, v in values_of(t).items() if k != SEED} for t in trials]
    ranges: dict[str, list[BaseDistribution]] = {}
    for name, parameter in study.space.parameters.items():
        ranges.setdefault(path_of(name), []).append(parameter.optuna)
    distributions = {
        path: _covering(own, [in_optuna(drawn[path]) for drawn in values if path in drawn])
        for path, own in ranges.items()
        if path != SEED
    }
    copy = optuna.create_study(study_name=study.plan.name, directions=study.plan.goal)
    name_metrics(copy, study.plan.metric)
    for trial, drawn in zip(trials, values, strict=True):
        copy.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if trial.values else trial.state,
                values=trial.values,
                params={name: in_optuna(one) for name, one in drawn.items()},
                distributions={name: distributions[name] for name in drawn},
                user_attrs=trial.user_attrs | {"state": state_of(trial)},
                intermediate_values=_curve(study, trial),
            )
        )
    return copy


def _covering(ranges: Sequence[BaseDistribution], values: Sequence[Any]) -> BaseDistribution:
    """Join the ranges of a key; widen them to values that rounding has moved out of them."""
    floats = [one for one in ranges if isinstance(one, FloatDistribution)]
    if len(floats) < len(ranges):
        return (
            ranges[0] if len(ranges) == 1 else CategoricalDistribution(list(dict.fromkeys(values)))
        )
    low = min([*values, *(one.low for one in floats)])
    high = max([*values, *(one.high for one in floats)])
    return FloatDistribution(low, high, log=floats[0].log and low > 0)


def _curve(study: Study, trial: FrozenTrial) -> dict[int, float]:
    """Return the metric by evaluation; of the first seed where there are several."""
    folder, metric = study.folder_of(trial.number), study.plan.metric[0]
    path = folder / METRICS
    lines = read_history(path if path.exists() else folder / "seed_0" / METRICS)
    values = [line[metric] for line in lines if {metric, "epoch"} <= line.keys()]
    return dict(enumerate(values, start=1))
