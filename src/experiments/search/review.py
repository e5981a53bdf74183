"""A study as the data of its report."""

import warnings
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.search.distributions import Choice, Numbers
from experiments.search.results import WINNER, command, score
from experiments.search.study import Study, state_of
from experiments.tracking.jsonl import METRICS, read_history
from experiments.viz.study_data import Axis, Row, StudyData

ENOUGH = 4  # finished trials from which importance is estimated


def study_data(study: Study) -> StudyData:
    """Reads a study and the histories of its runs."""
    plan, best = study.plan, study.best()
    axes = [
        Axis(
            name,
            log=isinstance(parameter, Numbers) and parameter.log,
            choices=parameter.values if isinstance(parameter, Choice) else None,
        )
        for name, parameter in study.space.parameters.items()
    ]
    winner = study.optuna.user_attrs.get(WINNER, {})
    return StudyData(
        name=plan.name,
        method=plan.method,
        metric=plan.metric,
        goal=plan.goal,
        budget=plan.n_trials,
        axes=axes,
        rows=[_row(study, trial) for trial in study.trials()],
        importance=importance(study),
        command=None if best is None else command(study, best),
        tested={k: v for k, v in winner.items() if k.startswith("test/")},
    )


def importance(study: Study) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023): what set the best trials apart from the others."""
    done = [t for t in study.trials() if t.state == TrialState.COMPLETE]
    shared = set.intersection(*(set(t.params) for t in done)) if done else set()
    varied = [name for name in shared if len({repr(t.params[name]) for t in done}) > 1]
    if len(done) < ENOUGH or not varied:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(study.optuna, params=varied)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _row(study: Study, trial: FrozenTrial) -> Row:
    attributes = trial.user_attrs
    return Row(
        number=trial.number,
        state=state_of(trial),
        value=score(trial),
        values=attributes.get("values", {}),
        seconds=attributes.get("seconds"),
        reason=attributes.get("reason"),
        curve=_curve(study.folder_of(trial.number), study.plan.metric),
    )


def _curve(folder: Path, metric: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Epochs and the validation metric after each; of the first seed where there are several."""
    path = folder / METRICS
    lines = read_history(path if path.exists() else folder / "seed_0" / METRICS)
    points = [(line["epoch"], line[metric]) for line in lines if metric in line]
    return tuple(p[0] for p in points), tuple(p[1] for p in points)
