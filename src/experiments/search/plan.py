"""What a study is to do: the contents of `study.yaml`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from experiments.core.config import check_arguments
from experiments.errors import UserError
from experiments.types import Positive, PositiveInt

FILE = "study.yaml"

Method = Literal["random", "grid", "bayes", "gp", "cmaes", "quasi_random", "narrow"]


@dataclass(frozen=True)
class Plan:
    """A search from its space to its budget.

    Args:
      name: of the study, and the W&B group of its runs.
      parameters: the search space in W&B's schema, by dotted path.
      overrides: of every trial's config.
      metric: the validation metric that is searched for, such as `val/accuracy`.
      goal: whether it should be small or large.
      n_trials: the budget, whoever runs the trials.
      method: how values are drawn.
      rounds: of the method `narrow`.
      seed: of the draws, and of the first run of each trial.
      seeds: runs a trial, whose median is its score.
      early_terminate: W&B's hyperband: `min_iter` or `max_iter` and `s`, in epochs, and `eta`.
      storage: the Optuna storage: a file in the study folder, or the URL of a database.
      heartbeat: seconds without a sign of life after which a worker counts as dead.
      attempts: deaths of workers at one trial after which the trial counts as failed.
      lanes: trials that a worker takes at once and trains side by side; `auto` is its share of the
        budget, up to 128.
      cluster: where workers run; `name` is `local` or `slurm`, the rest is its own.
    """

    name: str
    parameters: dict
    overrides: list[str]
    metric: str
    goal: Literal["minimize", "maximize"]
    n_trials: PositiveInt
    method: Method = "random"
    rounds: PositiveInt = 3
    seed: int = 0
    seeds: PositiveInt = 1
    early_terminate: dict | None = None
    storage: str = "journal.log"
    heartbeat: Positive = 60.0
    attempts: PositiveInt = 3
    lanes: PositiveInt | Literal["auto"] = 1
    cluster: dict = field(default_factory=lambda: {"name": "local"})

    def save(self, folder: Path) -> None:
        """Writes `study.yaml`."""
        text = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, width=100)
        new = folder / f"{FILE}.tmp"
        new.write_text(text)
        new.replace(folder / FILE)


def read_plan(folder: Path) -> Plan:
    """The plan of the study in `folder`; raises `UserError` if there is none."""
    path = folder / FILE
    if not path.is_file():
        what = "is not the folder of a study" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; a study folder holds {FILE}")
    fields = yaml.safe_load(path.read_text())
    check_arguments(Plan, fields, "study")
    return Plan(**fields)
