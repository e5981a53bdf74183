"""From a sweep file or a command line to a plan, checked whole."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.core.config import check_arguments
from experiments.errors import UserError
from experiments.search import grammar, methods
from experiments.search.check import Findings, cases, examine
from experiments.search.configs import Configs, configs_of
from experiments.search.local import Crew
from experiments.search.options import Options
from experiments.search.plan import Plan
from experiments.search.slurm import read_cluster
from experiments.search.space import read_space
from experiments.search.sweepfile import SweepFile


def plan_of_file(
    file: SweepFile,
    overrides: Sequence[str],
    options: Options,
    config_folder: Path,
    crew: Crew | None = None,
) -> Plan:
    """The plan of a sweep file, with overrides and options of the command line.

    Args:
      crew: workers that can be asked what takes JAX to say.

    Raises:
        UserError: a line for each thing that is wrong, with the line of the file.
    """
    content = file.content
    metric = content.get("metric")
    settings: dict[str, Any] = {
        "name": content.get("name", file.path.stem),
        "method": content.get("method", "random"),
        "early_terminate": content.get("early_terminate"),
    }
    if metric is not None:  # W&B's default is to minimise
        settings |= {"metric": metric["name"], "goal": metric.get("goal", "minimize")}
    if "run_cap" in content:
        settings["n_trials"] = content["run_cap"]
    return make_plan(
        content["parameters"],
        overrides,
        settings | options,
        config_folder,
        lambda *keys: "" if keys[0] in options else f"{file.where(*keys)}: ",
        crew,
    )


def plan_of_arguments(
    arguments: Sequence[str], options: Options, config_folder: Path, crew: Crew | None = None
) -> Plan:
    """The plan of a command line in Hydra's grammar.

    Without `n_trials` and `method`, finite lists are searched as a full grid.

    Args:
      crew: workers that can be asked what takes JAX to say.
    """
    for argument in arguments:
        if argument.partition("=")[0] in ("mode", "resume", "checkpoint"):
            raise UserError(f"{argument}: -m searches, so every run of it is a new training")
    parameters, overrides = grammar.split(Configs(config_folder).parse(arguments))
    if not parameters:
        raise UserError(
            "-m searches over nothing: give a key several values, such as optim=adam,sgd"
        )
    settings: dict[str, Any] = {"name": "_".join(p.rpartition(".")[2] for p in parameters)}
    finite = all("distribution" not in node for node in parameters.values())
    if "n_trials" not in options and finite:
        settings["method"] = "grid"
    return make_plan(
        parameters, overrides, settings | options, config_folder, lambda *keys: "", crew
    )


def make_plan(
    parameters: Mapping[str, Any],
    overrides: Sequence[str],
    settings: Options,
    config_folder: Path,
    where: Callable[..., str],
    crew: Crew | None,
) -> Plan:
    """A plan that will not fail for a reason that could be seen beforehand.

    Args:
      parameters: in W&B's schema; one that is among the overrides is settled by them.
      settings: fields of the plan; metric and goal are the objective's own unless given.
      where: says in which line of a file a key is.
    """
    configs = configs_of(config_folder, tuple(overrides))
    for override in configs.parse(overrides):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: put it among the parameters of the sweep file")
        parameters = {k: v for k, v in parameters.items() if k != override.key_or_group}
    if not parameters:
        raise UserError("the command line settles every parameter; there is nothing to search")
    space = read_space(parameters, configs)
    found = Findings(list(space.check_paths()))
    if not found.wrong:
        found = crew.ask(examine, cases(space)) if crew else examine(cases(space))
    if found.wrong:
        wrong = [f"{where('parameters', name)}{text}" for name, text in found.wrong]
        raise UserError("\n".join(wrong))
    config = configs.plain(space.contexts[0])
    if config["nodes"] != 1:
        raise UserError(f"nodes={config['nodes']}: a trial runs on one node; say workers=...")
    settings = {k: v for k, v in settings.items() if k not in ("study", "workers")}
    settings |= {"seed": config["seed"], "parameters": dict(parameters)}
    settings["name"] = re.sub(r"[^\w.-]+", "-", str(settings["name"]))
    settings["cluster"] = {"name": "local"} | settings.get("cluster", {})
    read_cluster(config_folder, settings["cluster"])
    settings["overrides"] = [*overrides, *monitoring(settings, config, found)]
    if settings.get("method") == "grid":
        points = len(space.grid(settings.get("n_trials")))
        settings["n_trials"] = min(settings.get("n_trials", points), points)
    if "n_trials" not in settings:
        raise UserError(
            f"{where('run_cap')}how many trials? say n_trials=... (or run_cap in the file)"
        )
    return checked(settings, where)


def monitoring(settings: Options, config: Mapping[str, Any], found: Findings) -> list[str]:
    """Settles metric and goal, and what a trial's config needs for its best epoch to be by them."""
    trainer = config["trainer"]
    assert found.monitor is not None
    own, mode = found.monitor
    chosen = trainer["monitor"] or own
    mode = trainer["monitor_mode"] or mode
    settings.setdefault("metric", f"val/{chosen}")
    settings.setdefault("goal", "maximize" if mode == "max" else "minimize")
    wanted, goal = settings["metric"].removeprefix("val/"), settings["goal"][:3]
    if (wanted, goal) == (chosen, mode):
        return []
    return [f"trainer.monitor={wanted}", f"trainer.monitor_mode={goal}"]


def checked(settings: Options, where: Callable[..., str] = lambda *keys: "") -> Plan:
    """The plan of these settings; raises `UserError` for one that cannot be."""
    try:
        check_arguments(Plan, settings, "")
    except UserError as error:
        key = str(error).partition("=")[0]
        raise UserError(f"{where({'n_trials': 'run_cap'}.get(key, key))}{error}") from error
    plan = Plan(**settings)
    try:
        methods.check_method(plan)
    except UserError as error:
        key = str(error).partition(" ")[0].partition("=")[0].rstrip(":")
        raise UserError(f"{where(*key.split('.'))}{error}") from error
    return plan
