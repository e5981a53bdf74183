"""The command line `python sweep.py`.

python sweep.py sweeps/lenet5_lr_wd.yaml [workers=2] [cluster=slurm] [any config override]
    engine=wandb: W&B's server draws the values, and the workers are its agents
python sweep.py status=<study folder>    what came out so far, live in a terminal
python sweep.py resume=<study folder>    go on; [n_trials=...] longer, [workers=...] faster
python sweep.py cancel=<study folder>    ask its workers to save their trials and stop
python sweep.py worker=<study folder>    one worker, as clusters start it
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.core.config import mismatch
from experiments.errors import UserError, suggest
from experiments.search import local
from experiments.search.options import Options, divide, study_folder
from experiments.search.plan import read_plan
from experiments.types import PositiveInt

# All else is imported where it is used: workers start before that.


def sweep(arguments: Sequence[str], config_folder: Path) -> None:
    """What `python sweep.py` does; raises `Exit` unless the study is complete."""
    first = arguments[0] if arguments else ""
    action, _, value = first.partition("=")
    if action in ACTIONS:
        options, rest = divide(arguments[1:])
        if rest:
            raise UserError(f"{rest[0]}: a study keeps its config; {action}= takes no overrides")
        ACTIONS[action](Path(value), config_folder, options)
    elif first.endswith((".yaml", ".yml")):
        options, overrides = divide(arguments[1:])
        engine = options.get("engine", "own")
        if complaint := mismatch(engine, Literal["own", "wandb"]):
            raise UserError(f"engine={engine}: must be {complaint}")
        (begin if engine == "own" else begin_agents)(Path(first), overrides, options, config_folder)
    else:
        hint = suggest(action, ACTIONS) if "=" in first else ""
        raise UserError(f"{first or 'nothing given'}: name a sweep file{hint}\n{__doc__}".strip())


def begin(file: Path, overrides: Sequence[str], options: Options, config_folder: Path) -> None:
    """Makes the study that a sweep file describes and has it worked on."""
    with local.standing_by(options, config_folder) as crew:
        from experiments.search import launch
        from experiments.search.planning import plan_of_file
        from experiments.search.sweepfile import read_sweep_file

        plan = plan_of_file(read_sweep_file(file), overrides, options, config_folder, crew)
        launch.begin(plan, study_folder(options, plan.name), config_folder, options, crew)


def begin_agents(
    file: Path, overrides: Sequence[str], options: Options, config_folder: Path
) -> None:
    """Makes the sweep on W&B's server and starts agents."""
    from experiments.search import agents
    from experiments.search.sweepfile import read_sweep_file

    agents.begin(read_sweep_file(file), overrides, options, config_folder)


def status(folder: Path, config_folder: Path, _: Options) -> None:
    """Shows the study, and what of it is in the queue of a cluster."""
    from experiments.search.slurm import jobs, queue
    from experiments.search.study import Study
    from experiments.search.watch import follow

    if ids := jobs(folder):
        print(f"Slurm jobs {', '.join(ids)}: {queue(folder)}", flush=True)
    follow(Study(folder, config_folder))


def resume(folder: Path, config_folder: Path, options: Options) -> None:
    """Starts workers on a study that exists, with a larger budget if one is given."""
    plan = read_plan(folder)
    for key in options:
        if key not in ("n_trials", "workers", "cluster"):
            raise UserError(f"{key}={options[key]}: a study keeps it; resume= can change n_trials")
    budget = options.get("n_trials", plan.n_trials)
    if plan.method == "grid" and budget != plan.n_trials:
        raise UserError(f"n_trials={budget}: a grid has {plan.n_trials} points; begin a new study")
    if mismatch(budget, PositiveInt) or budget < plan.n_trials:
        raise UserError(f"n_trials={budget}: must be a whole number of at least {plan.n_trials}")
    changes = options.get("cluster", {})
    cluster = changes if "name" in changes else plan.cluster | changes
    with local.standing_by(options, config_folder, cluster["name"]) as crew:
        from experiments.search.launch import launch
        from experiments.search.slurm import read_cluster
        from experiments.search.study import CANCEL, Study

        read_cluster(config_folder, cluster)
        plan = dataclasses.replace(plan, n_trials=budget, cluster=cluster)
        plan.save(folder)
        (folder / CANCEL).unlink(missing_ok=True)
        study = Study(folder, config_folder)
        study.lay_down()
        launch(study, options, crew)


def cancel(folder: Path, config_folder: Path, _: Options) -> None:
    """Asks all workers to save their trials and stop."""
    from experiments.search.slurm import cancel_jobs
    from experiments.search.study import CANCEL

    read_plan(folder)
    (folder / CANCEL).touch()
    cancel_jobs(folder)
    print(f"its workers save and stop; go on with: python sweep.py resume={folder}")


def worker(folder: Path, config_folder: Path, options: Options) -> None:
    """Runs one worker; one of this machine's launcher, `-`, waits for what it is told to do."""
    name, configs = options.get("name"), None
    if folder == Path("-"):
        ordered = local.orders()
        if ordered is None:
            return
        folder, configs = ordered
        with (folder / local.LOGS / f"{name}.log").open("w") as log:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(log.fileno(), stream.fileno())
    from experiments.search.worker import work  # imports JAX

    logging.basicConfig(
        format="%(asctime)s %(message)s",
        level=logging.INFO,
        stream=sys.stdout,
        force=True,  # Orbax has made a handler of its own by now
    )
    for talkative in ("absl", "jax"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    work(folder, config_folder, name, configs)


ACTIONS = {"status": status, "resume": resume, "cancel": cancel, "worker": worker}
