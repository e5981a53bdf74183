"""Searches over hyperparameters.

experiments sweep <sweep file> [key of a search ...] [any config override]
experiments sweep status=<study folder>    what came out so far, live in a terminal
experiments sweep resume=<study folder>    go on; [n_trials=...] longer, [workers=...] faster;
    [retry=failed] runs trials that failed again
experiments sweep stop=<study folder>/trials/7   end one trial that runs; the others go on
experiments sweep cancel=<study folder>    ask its workers to save their trials and stop
experiments sweep worker=<study folder>    one worker, as clusters start it
each with --config-dir=<folder> where config files of your own are not in conf/ here
"""

import datetime
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.cli.own import config_dir_of, with_own
from experiments.cli.search_keys import Options, divide, search_help
from experiments.core.config import mismatch
from experiments.errors import UserError, suggest
from experiments.machine import CONFIG, called
from experiments.processes import together
from experiments.search import configs, local

# All else is imported where it is used: workers start before that.

ACTIONS = ("status", "resume", "stop", "cancel", "worker")  # functions of `search.actions`


def usage() -> str:
    """Return what `--help` prints."""
    return f"{__doc__}\n{search_help()}"


def main() -> None:
    """Do what the command line asks for."""
    sweep(with_own(sys.argv[1:]), CONFIG)


def sweep(arguments: Sequence[str], config_folder: Path) -> None:
    """Do what `arguments` ask for; raise `Exit` unless the study is complete."""
    config_dir, arguments = config_dir_of(arguments)
    first = arguments[0] if arguments else ""
    action, _, value = first.partition("=")
    if action != "worker":  # of which there may be any number, each by itself
        together.check_alone("a search")
    options, overrides = divide(arguments[1:])
    options |= {"config_dir": config_dir} if config_dir else {}
    trust_own(options, overrides, config_folder)
    engine = options.get("engine", "own")
    if action in ACTIONS:
        if overrides:
            rest = overrides[0]
            raise UserError(f"{rest}: a study keeps its config; {action}= takes no overrides")
        from experiments.search import actions

        getattr(actions, action)(Path(value), config_folder, options)
    elif not first.endswith((".yaml", ".yml")):
        hint = suggest(action, ACTIONS) if "=" in first else ""
        advice = hint or f"; {called('sweep')} --help says what else there is"
        raise UserError(f"{first or 'nothing given'}: name a sweep file{advice}")
    elif complaint := mismatch(engine, Literal["own", "wandb"]):
        raise UserError(f"engine={engine}: must be {complaint}")
    elif engine == "wandb":
        from experiments.search import agents

        folder = study_folder(options, overrides, Path(first).stem)
        agents.begin(Path(first), overrides, options, config_folder, folder)
    else:
        with local.standing_by(options) as workers:
            from experiments.search.actions import begin
            from experiments.search.plan import plan_of_file
            from experiments.search.readers import read_sweep_file

            plan = plan_of_file(read_sweep_file(Path(first)), overrides, options, config_folder)
            begin(
                plan, study_folder(options, overrides, plan.name), config_folder, options, workers
            )


def trust_own(options: Options, overrides: Sequence[str], config_folder: Path) -> None:
    """Note what a command line trusts that a study in a folder cannot say: packages, programs."""
    configs.trust_own(config_folder, options.get("config_dir"), options.get("allow", []))
    for override in overrides:
        key, _, folder = override.partition("=")
        if key == "trainer.compilation_cache" and folder.strip("'\"") not in ("", "null"):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.strip("'\"")


def study_folder(options: Options, overrides: Sequence[str], name: str) -> Path:
    """Return the folder of a new study: the one that is asked for, or one as `conf/folders` say."""
    if "study" in options:
        return Path(str(options["study"])).absolute()
    now = datetime.datetime.now()
    if "folders=hydra" in overrides:
        return Path(f"multirun/{now:%Y-%m-%d/%H-%M-%S}").absolute()
    unique = uuid.uuid4().hex[:6]
    return Path(f"runs/{now:%Y-%m-%d/%H-%M-%S}_{name}_{unique}").absolute()
