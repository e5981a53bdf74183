"""The plan of a study, the contents of `study.yaml`; made from a sweep file or a command line.

All of a plan is checked, so that its study does not fail later for a mistake in it.
"""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.trial import FrozenTrial, TrialState

from experiments.core.config import build, check_arguments, mismatch, objective_of
from experiments.errors import UserError, suggest
from experiments.search import methods
from experiments.search.configs import Configs, assignments, check_trial, configs_of
from experiments.search.local import where_jax_is
from experiments.search.readers import SweepFile, read_space, split
from experiments.search.slurm import read_cluster
from experiments.search.space import Space
from experiments.search.storage import ADDRESS, keep_address
from experiments.tracking.jsonl import read_mapping, write_whole
from experiments.types import Positive, PositiveInt

FILE = "study.yaml"
SETTLED = ("study", "workers", "engine", "allow")  # options that are no part of a plan

LARGER_IS_BETTER = {"accuracy", "acc", "f1", "auc", "precision", "recall", "solved"}
SMALLER_IS_BETTER = {"loss", "error", "perplexity", "mse", "mae", "rmse", "nll"}

log = logging.getLogger(__name__)

Method = Literal["random", "grid", "bayes", "gp", "cmaes", "quasi_random", "narrow"]


@dataclass(frozen=True)
class Plan:
    """A search from its space to its budget.

    Args:
      name: of the study, and the W&B group of its runs.
      parameters: the search space in W&B's schema, by dotted path.
      overrides: of every trial's config.
      metric: the validation metric that is searched for, such as `val/accuracy`.
      goal: the direction in which the metric gets better.
      n_trials: the budget, whoever runs the trials.
      method: how values are drawn.
      rounds: of the method `narrow`.
      seed: of the draws, and of the first run of each trial.
      seeds: runs per trial; its score is their median.
      early_terminate: W&B's hyperband: `min_iter` or `max_iter` and `s`, in epochs, and `eta`.
      storage: the Optuna storage: a file in the study folder, or the URL of a database, which
        `env` takes from the environment.
      heartbeat: seconds without a sign of life after which a worker counts as dead.
      attempts: deaths of workers at one trial after which the trial counts as failed.
      side_by_side: trials that a worker takes at once and trains side by side; `auto` is its share
        of the budget, up to 128.
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
    side_by_side: PositiveInt | Literal["auto"] = 1
    cluster: dict = field(default_factory=lambda: {"name": "local"})

    def ranked(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of the trials that finished, the best one first."""
        sign = 1 if self.goal == "minimize" else -1
        finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        return sorted(finished, key=lambda trial: sign * trial.value)  # type: ignore[operator]

    def save(self, folder: Path) -> None:
        """Write `study.yaml`, without the password of its storage."""
        fields = dataclasses.asdict(self) | {"storage": keep_address(folder, self.storage)}
        text = yaml.safe_dump(fields, sort_keys=False, width=100)
        write_whole(folder / FILE, text)


def read_plan(folder: Path) -> Plan:
    """Read the plan of the study in `folder`; raises `UserError` if there is none to be read."""
    path = folder / FILE
    if not path.is_file():
        what = "is not the folder of a study" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; a study folder holds {FILE}")
    fields = read_mapping(path, yaml.safe_load)
    if "lanes" in fields:  # its name in older studies
        fields["side_by_side"] = fields.pop("lanes")
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
    settings |= options
    try:
        return make_plan(content["parameters"], overrides, settings, config_folder)
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
    parameters, overrides = split(Configs(config_folder).parse(arguments))
    if not parameters:
        raise UserError(
            "-m searches over nothing: give a key several values, such as optim=adam,sgd"
        )
    settings: dict[str, Any] = {"name": "_".join(p.rpartition(".")[2] for p in parameters)}
    if "method" not in options and all("values" in node for node in parameters.values()):
        if "n_trials" not in options:
            settings["method"] = "grid"
        else:
            points = math.prod(len(node["values"]) for node in parameters.values())
            log.warning(
                "warning: n_trials=%s trials are drawn at random, and may repeat; without n_trials "
                "all combinations run once, %d at most",
                options["n_trials"],
                points,
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
    configs = configs_of(config_folder, tuple(overrides))
    for override in configs.parse(overrides):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: put it among the parameters of the sweep file")
        parameters = {k: v for k, v in parameters.items() if k != override.key_or_group}
    if not parameters:
        raise UserError("the command line settles every parameter; there is nothing to search")
    space = read_space(parameters, configs)
    if wrong := list(space.check_paths()):
        raise UserError("\n".join(wrong))
    config = configs.plain(space.contexts[0])
    if config["nodes"] != 1:
        raise UserError(f"nodes={config['nodes']}: a trial runs on one node; say workers=...")
    if "retry" in settings:
        raise UserError(f"retry={settings['retry']}: goes with resume=<study folder>")
    settings = {k: v for k, v in settings.items() if k not in SETTLED}
    settings, own = where_jax_is(examine, space, settings)
    question_goal(settings["metric"], settings["goal"])
    settings |= {"seed": config["seed"], "parameters": dict(parameters)}
    settings["name"] = re.sub(r"[^\w.-]+", "-", str(settings["name"]))
    settings["cluster"] = {"name": "local"} | settings.get("cluster", {})
    read_cluster(config_folder, settings["cluster"])
    settings["overrides"] = [*overrides, *own]
    if settings.get("storage") == "env":
        if not (url := os.environ.get(ADDRESS)):
            raise UserError(f"storage=env: {ADDRESS} is not set to the URL of a database")
        settings["storage"] = url
    if settings.get("method") == "grid":
        points = len(space.grid(settings.get("n_trials")))
        settings["n_trials"] = min(settings.get("n_trials", points), points)
    if "n_trials" not in settings:
        raise UserError("how many trials? say n_trials=... (or run_cap in the file)")
    check_arguments(Plan, settings, "")
    plan = Plan(**settings)
    methods.check_method(plan)
    return plan


def examine(space: Space, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Check what a search may draw; return its settings, with metric and goal, and overrides.

    By these overrides a trial finds its best epoch. This imports what the configs name, and with
    that JAX, but computes nothing.

    Raises:
        UserError: a line for each thing that is wrong.
    """
    if wrong := check_values(space):
        raise UserError("\n".join(wrong))
    for choices in space.contexts:
        config = space.configs.plain(choices)
        check_trial(config)
        check_model(config)
    config = space.configs.plain(space.contexts[0])
    own, mode = objective_of(config).monitor
    chosen = config["trainer"]["monitor"] or own
    mode = config["trainer"]["monitor_mode"] or mode
    usual = {"metric": f"val/{chosen}", "goal": "maximize" if mode == "max" else "minimize"}
    settled = {**usual, **settings}
    wanted, goal = settled["metric"].removeprefix("val/"), settled["goal"][:3]
    key = "metric.name=val/" if "metric" in settings else "trainer.monitor="
    if wrong := [f"{key}{wanted}: {problem}" for problem in check_metric(space, wanted)]:
        raise UserError("\n".join(wrong))
    if (wanted, goal) == (chosen, mode):
        return settled, []
    return settled, [f"trainer.monitor={wanted}", f"trainer.monitor_mode={goal}"]


def check_metric(space: Space, metric: str) -> Iterator[str]:
    """Yield a complaint for each choice of a group whose trials have no such validation metric.

    What the objective itself goes by needs no look; other metrics are found by shapes alone.
    """
    for choices in space.contexts:
        config = space.configs.plain(choices)
        if metric in ("loss", objective_of(config).monitor[0]):
            continue
        try:
            there = metrics_of(config)
        except UserError:  # of the data, say, which may lie where the workers are
            continue
        if metric not in there:
            of = " ".join(assignments(choices))
            trials = f"trials with {of}" if of else "its trials"
            hint = suggest(metric, there) or f"; there are {', '.join(sorted(there))}"
            yield f"{trials} have no such metric{hint}"


def metrics_of(config: dict[str, Any]) -> set[str]:
    """Return the names of a run's validation metrics; of its data only the shapes are read."""
    import jax

    from experiments.core.experiment import Experiment

    data = build(config["data"])
    experiment = Experiment(config, data.spec, data.pipeline, 1, 1)
    batch = {
        name: jax.ShapeDtypeStruct((2, *shape), dtype)
        for name, (shape, dtype) in {**data.spec.stored, "mask": ((), "float32")}.items()
    }
    weights = experiment.weights(experiment.abstract_state({}))
    sums, _ = jax.eval_shape(experiment.eval_step, *weights, batch, {})
    return set(sums) - {"count"}


def question_goal(metric: str, goal: str) -> None:
    """Warn where a search looks for the worst trial by the usual sense of its metric."""
    words = set(re.findall("[a-z0-9]+", metric.lower()))
    for better, names in (("maximize", LARGER_IS_BETTER), ("minimize", SMALLER_IS_BETTER)):
        if words & names and goal != better:
            log.warning(
                "warning: goal: %s looks for the worst %s (W&B's default is minimize); "
                "say goal: %s",
                *(goal, metric, better),
            )


def check_model(config: dict[str, Any]) -> None:
    """Check that the model can be built for the data, of which the description alone is read.

    It is not called: that depends on the device, which planning leaves to the workers.
    """
    from experiments.core.experiment import Experiment  # imports JAX

    data = build(config["data"])
    try:
        Experiment(config, data.spec, data.pipeline, 1, 1).abstract_state({})
    except UserError:
        raise
    except Exception:
        log.debug("a trial will show this", exc_info=True)


def check_values(space: Space) -> list[str]:
    """Return the complaints of a run about values that the search may draw, one per parameter.

    All values of a list and the ends of every range are compared with the config of each choice of
    each group.
    """
    found: dict[str, str] = {}
    # the longest run that is drawn, where that is searched too
    epochs = space.parameters.get("trainer.epochs")
    lengths = [v for v in epochs.extremes if mismatch(v, PositiveInt) is None] if epochs else []
    longest = {"trainer.epochs": max(lengths)} if lengths else {}
    for choices in space.contexts:
        for name in space.existing(choices):
            for value in space.parameters[name].extremes:
                try:
                    config = space.configs.plain({**choices, **longest, name: value})
                    check_trial(config)
                    if name.startswith(("model.", "data.")) and not isinstance(value, float):
                        check_model(config)
                except UserError as error:
                    own, q = str(error).startswith(name), space.parameters[name].q
                    problem = str(error) if own else f"{name}={value}: {error}"
                    rounded = f"; its range is rounded to multiples of {q:g}" if q else ""
                    found.setdefault(name, problem + rounded)
    return list(found.values())
