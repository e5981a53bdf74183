"""The plan of a study, the contents of `study.yaml`; made from a sweep file or a command line.

All of a plan is checked, so that its study does not fail later for a mistake in it.
"""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.trial import FrozenTrial, TrialState

from experiments.core.config import check_arguments, mismatch
from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.search import methods, points
from experiments.search.configs import Configs, check_added, check_trains, configs_of
from experiments.search.examine import examine
from experiments.search.goals import Goal, listed, read_goal
from experiments.search.local import check_gpus, where_jax_is
from experiments.search.readers import SweepFile, read_space, split
from experiments.search.shared.storage import ADDRESS, keep_address
from experiments.search.slurm import read_cluster
from experiments.search.space import path_of
from experiments.tracking.jsonl import read_mapping
from experiments.tracking.wandb_names import overrides_of
from experiments.training.options import check_said
from experiments.types import Positive, PositiveInt, Share

FILE = "study.yaml"
SETTLED = ("study", "workers", "gpus_per_worker", "engine", "allow")
"""Options that are no part of a plan."""

OF_PROCESS = {"trainer.matmul_precision", "trainer.deterministic"}
"""Keys that no trials of a worker can differ in."""

log = logging.getLogger(__name__)

Method = Literal["random", "grid", "bayes", "gp", "cmaes", "quasi_random", "narrow"]


@dataclass(frozen=True)
class Plan:
    """A search from its space to its budget.

    Args:
      name: of the study, and the W&B group of its runs.
      parameters: the search space in W&B's schema, by dotted path.
      overrides: of every trial's config.
      metric: what is searched for: a validation metric such as `val/accuracy`, or several; the
        first of them decides on the best epoch of a trial, which the others are of.
      goal: the direction in which each metric gets better.
      n_trials: the budget, whoever runs the trials.
      method: how values are drawn.
      rounds: of the method `narrow`.
      shrink: of the method `narrow`: width of a range in a round over that in the round before.
      seed: of the draws, and of the first run of each trial.
      seeds: runs per trial; its score is their median.
      early_terminate: what ends trials early: its `type` and settings, see `methods.pruner`.
      points: the values of the first trials, by parameter; those that are not there are drawn.
      storage: the Optuna storage: a file in the study folder, or the URL of a database, which
        `env` takes from the environment.
      heartbeat: seconds without a sign of life after which a worker counts as dead.
      attempts: deaths of workers at one trial after which the trial counts as failed.
      side_by_side: trials that a worker takes at once and trains side by side; `auto` is its share
        of the budget, up to 128.
      config_dir: folder of the user's own config files, beside `conf`.
      directory: where the study was begun; paths in its config may be relative to it.
      cluster: where workers run; `name` is `local` or `slurm`, the rest is its own.
    """

    name: str
    parameters: dict
    overrides: list[str]
    metric: list[str]
    goal: list[Goal]
    n_trials: PositiveInt
    method: Method = "random"
    rounds: PositiveInt = 3
    shrink: Share = 0.5
    seed: int = 0
    seeds: PositiveInt = 1
    early_terminate: dict | None = None
    points: list[dict] = field(default_factory=list)
    storage: str = "journal.log"
    heartbeat: Positive = 60.0
    attempts: PositiveInt = 3
    side_by_side: PositiveInt | Literal["auto"] = 1
    config_dir: str | None = None
    directory: str | None = None
    cluster: dict = field(default_factory=lambda: {"name": "local"})

    def ranked(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of the trials that finished, the best one first.

        Of several metrics only the front, in the order of the first metric: trials that no other
        one is at least as good as in each metric and better than in one.
        """
        finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        signs = [1 if goal == "minimize" else -1 for goal in self.goal]
        costs = {t.number: [s * v for s, v in zip(signs, t.values, strict=True)] for t in finished}
        if len(signs) > 1:
            finished = [t for t in finished if not _beaten(costs[t.number], costs.values())]
        return sorted(finished, key=lambda trial: costs[trial.number])

    def save(self, folder: Path) -> None:
        """Write `study.yaml`, without the password of its storage."""
        fields = dataclasses.asdict(self) | {"storage": keep_address(folder, self.storage)}
        text = yaml.safe_dump(fields, sort_keys=False, width=100)
        write_whole(folder / FILE, text)


def _beaten(costs: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    """Return whether others cost no more in anything, and less in something."""
    return any(
        other != costs and all(o <= c for o, c in zip(other, costs, strict=True))
        for other in others
    )


def read_plan(folder: Path) -> Plan:
    """Read the plan of the study in `folder`; raises `UserError` if there is none to be read."""
    path = folder / FILE
    if not path.is_file():
        what = "is not the folder of a study" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; a study folder holds {FILE}")
    fields = read_mapping(path, yaml.safe_load)
    if "lanes" in fields:  # its name in older studies
        fields["side_by_side"] = fields.pop("lanes")
    for key in ("metric", "goal"):  # older studies have one
        if isinstance(fields.get(key), str):
            fields[key] = [fields[key]]
    needed = (
        one.name
        for one in dataclasses.fields(Plan)
        if one.default is one.default_factory is dataclasses.MISSING
    )
    if missing := [name for name in needed if name not in fields]:
        raise UserError(f"{path} is damaged: it lacks {', '.join(missing)}\nrestore it from a copy")
    check_arguments(Plan, fields, str(path))
    return Plan(**fields)


def plan_of_file(
    file: SweepFile, overrides: Sequence[str], options: dict[str, Any], config_folder: Path
) -> Plan:
    """Return the plan of a sweep file, with overrides and options of the command line.

    Raises:
        UserError: a line for each thing that is wrong, with the line of the file.
    """
    content = file.content
    settings: dict[str, Any] = {
        "name": content.get("name", file.path.stem),
        "method": content.get("method", "random"),
        "early_terminate": content.get("early_terminate") or {},
    }
    if content.get("metric") and "metric" not in options:  # W&B's default is to minimise
        metrics = listed(content["metric"])
        settings["metric"] = [metric["name"] for metric in metrics]
        settings["goal"] = [metric.get("goal", "minimize") for metric in metrics]
    if "run_cap" in content:
        settings["n_trials"] = content["run_cap"]
    if (early := options.get("early_terminate")) and "type" not in early:  # changes the file's
        options = options | {"early_terminate": settings["early_terminate"] | early}
    settings |= options
    try:
        every = [*overrides_of(content.get("command")), *overrides]
        return make_plan(content["parameters"], every, settings, config_folder)
    except UserError as error:
        own = {keys: line for keys, line in file.lines.items() if keys[0] not in options}
        file = dataclasses.replace(file, lines=own)
        complaints = (file.located(line) or line for line in str(error).splitlines())
        raise UserError("\n".join(complaints)) from error


def plan_of_arguments(
    arguments: Sequence[str], options: dict[str, Any], config_folder: Path
) -> Plan:
    """Return the plan of a command line in Hydra's grammar.

    Without `n_trials` and `method`, finite lists are searched as a full grid.
    """
    for argument in arguments:
        if argument.partition("=")[0] in ("mode", "resume", "checkpoint", "overwrite"):
            raise UserError(f"{argument}: -m searches, so every run of it is a new training")
    configs = Configs(config_folder, config_dir=options.get("config_dir"))
    parameters, overrides = split(configs.parse(arguments))
    if not parameters:
        raise UserError(
            "-m searches over nothing: give a key several values, such as optim=adam,sgd"
        )
    settings: dict[str, Any] = {"name": "_".join(p.rpartition(".")[2] for p in parameters)}
    if "method" not in options and all("values" in node for node in parameters.values()):
        if "n_trials" not in options:
            settings["method"] = "grid"
        else:
            most = math.prod(len(node["values"]) for node in parameters.values())
            log.warning(
                "n_trials=%s: drawn at random, none twice; without n_trials all combinations run, "
                "%d at most",
                options["n_trials"],
                most,
            )
    return make_plan(parameters, overrides, settings | options, config_folder)


def make_plan(
    parameters: Mapping[str, Any],
    overrides: Sequence[str],
    settings: dict[str, Any],
    config_folder: Path,
) -> Plan:
    """Return the plan of these parameters and settings.

    Args:
      parameters: in W&B's schema; one that is among the overrides is settled by them.
      settings: fields of the plan; metric and goal are the objective's own unless given.

    Raises:
        UserError: a line for each thing that is wrong, which begins with its key.
    """
    configs = configs_of(config_folder, tuple(overrides), settings.get("config_dir"))
    for override in configs.parse(overrides):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: put it among the parameters of the sweep file")
        parameters = {k: v for k, v in parameters.items() if path_of(k) != override.key_or_group}
    if not parameters:
        raise UserError("the command line settles every parameter; there is nothing to search")
    space = read_space(parameters, configs)
    if wrong := list(space.check_paths()):
        raise UserError("\n".join(wrong))
    if fixed := {path_of(name) for name in parameters} & OF_PROCESS:
        raise UserError(f"{min(fixed)}: holds for a whole process; begin a study for each value")
    for choices in space.contexts:
        check_trains(configs.compose(choices))
    check_added(overrides, configs.compose(space.contexts[0]), configs.groups)
    config = configs.plain(space.contexts[0])
    steps = parameters.get("trainer.steps") or config["trainer"]["steps"]
    check_said([*overrides, *parameters], {"trainer": {"steps": steps}})
    check_gpus(config["trainer"]["devices"], settings)
    if config["nodes"] != 1:
        raise UserError(f"nodes={config['nodes']}: a trial runs on one node; say workers=...")
    if "retry" in settings:
        raise UserError(f"retry={settings['retry']}: goes with resume=<study folder>")
    settings = {k: v for k, v in settings.items() if k not in SETTLED}
    wanted = settings | read_goal(settings)
    settings, own, surprising = where_jax_is(examine, space, wanted)
    for line in surprising:
        log.warning(line)
    started = points.read(settings.pop("points"), space) if "points" in settings else []
    if "from" in settings:
        other = Path(settings.pop("from"))
        started += points.of_study(other, read_plan(other).goal, space)
    settings |= {"seed": config["seed"], "parameters": dict(parameters), "points": started}
    settings["name"] = re.sub(r"[^\w.-]+", "-", str(settings["name"]))
    settings["cluster"] = {"name": "local"} | settings.get("cluster", {})
    read_cluster(config_folder, settings["cluster"])
    settings["overrides"] = [*overrides, *own]
    settings["directory"] = str(Path.cwd())
    if settings.get("storage") == "env":
        if not (url := os.environ.get(ADDRESS)):
            raise UserError(f"storage=env: {ADDRESS} is not set to the URL of a database")
        settings["storage"] = url
    method, budget = settings.get("method", "random"), settings.get("n_trials")
    if started and method == "grid":
        raise UserError("points= and from= are for a method that draws; say n_trials=...")
    if not mismatch(budget, PositiveInt | None) and (most := points.most(method, budget, space)):
        settings["n_trials"] = min(budget or most, most)
        if budget and method == "random" and budget > most:
            log.warning("n_trials=%d: there are %d combinations, each is tried", budget, most)
    if "n_trials" not in settings:
        raise UserError("how many trials? say n_trials=... (or run_cap in the file)")
    check_arguments(Plan, settings, "")
    plan = Plan(**settings)
    methods.check_method(plan)
    return plan
