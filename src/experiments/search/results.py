"""What came out of a study: `results.csv`, and the best trial as a command and as a recipe."""

import csv
import io
import shlex
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from experiments.search.configs import assignments
from experiments.search.study import Study, state_of
from experiments.tracking.terminal import number

RESULTS, BEST_COMMAND, BEST_RECIPE = "results.csv", "best.txt", "best.yaml"
COLUMNS = ("trial", "state", "value", "seconds", "run")
WINNER = "winner"
"""Attribute of a study: the number of the winner and its test metrics."""


def write_results(study: Study) -> None:
    """Writes what is known so far; a reader finds the old files or the new ones."""
    parameters = list(study.space.parameters)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*COLUMNS, *parameters])
    for trial in study.trials():
        values = trial.user_attrs.get("values", {})
        fixed = [trial.number, state_of(trial), score(trial), trial.user_attrs.get("seconds")]
        row = [*fixed, f"trials/{trial.number}", *(values.get(name) for name in parameters)]
        writer.writerow(["" if cell is None else cell for cell in row])
    _replace(study, RESULTS, table.getvalue())
    if (best := study.best()) is not None:
        _replace(study, BEST_COMMAND, command(study, best) + "\n")
        _replace(study, BEST_RECIPE, recipe(study, best))


def score(trial: FrozenTrial) -> float | None:
    """The value of a trial that has one."""
    return trial.value if trial.values else None


def command(study: Study, trial: FrozenTrial) -> str:
    """The command line that runs a trial's config again."""
    values = assignments(trial.user_attrs["values"])
    return shlex.join(["python", "run.py", *study.plan.overrides, *values])


def recipe(study: Study, trial: FrozenTrial) -> str:
    """A trial as a file of `conf/experiment`."""
    values = study.configs.given() | trial.user_attrs["values"]
    choices = {name: values.pop(name) for name in list(values) if name in study.configs.groups}
    defaults: list[Any] = [base] if (base := choices.pop("experiment", None)) else []
    defaults += [{f"override /{group}": choice} for group, choice in choices.items()]
    nested: dict[str, Any] = {}
    for path, value in values.items():
        node = nested
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    result = f"{study.plan.metric} {number(score(trial) or 0.0)}"
    winner = study.optuna.user_attrs.get(WINNER, {})
    if winner.get("trial") == trial.number:
        tested = {k: v for k, v in winner.items() if k.startswith("test/")}
        result += "".join(f", {name} {number(value)}" for name, value in tested.items())
    header = [
        "# @package _global_",
        f"# {study.plan.name}, trial {trial.number}, the best of {study.plan.n_trials}: {result}.",
        "#",
        f"#   python run.py experiment={Path(BEST_RECIPE).stem}     (in conf/experiment)",
    ]
    body = [_yaml(part) for part in ({"defaults": defaults} if defaults else {}, nested) if part]
    return "\n".join(header) + "\n" + "\n".join(body)


class _Dumper(yaml.SafeDumper):
    """Writes numbers as YAML reads them back: `1.0e-05`."""


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _float)


def _yaml(node: dict[str, Any]) -> str:
    return yaml.dump(node, Dumper=_Dumper, sort_keys=False, width=100)


def _replace(study: Study, name: str, text: str) -> None:
    new = study.folder / f".{name}.{study.worker}"
    new.write_text(text)
    new.replace(study.folder / name)
