"""The command line `python sweep.py`.

python sweep.py sweeps/lenet5_lr_wd.yaml [workers=2] [cluster=slurm] [any config override]
    engine=wandb: W&B's server draws the values, and the workers are its agents
python sweep.py status=<study folder>    what came out so far, live in a terminal
python sweep.py resume=<study folder>    go on; [n_trials=...] longer, [workers=...] faster
python sweep.py cancel=<study folder>    ask its workers to save their trials and stop
python sweep.py worker=<study folder>    one worker, as clusters start it
"""

import dataclasses
import datetime
import logging
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from experiments.core.config import mismatch
from experiments.errors import EXIT_CODES, Exit, UserError, suggest
from experiments.search import local
from experiments.types import PositiveInt

if TYPE_CHECKING:
    from experiments.search.plan import Plan
    from experiments.search.study import Study

# All else is imported where it is used: workers start before that.

SEARCH_KEYS = (
    *("n_trials", "method", "rounds", "seeds", "storage", "heartbeat", "attempts"),
    *("side_by_side", "study", "workers", "cluster", "name", "engine"),
)
"""Keys of a command line that are for the search, in `sweep.py` and after `run.py -m`."""

RENAMED = {"lanes": "side_by_side"}
"""Older names of such keys."""

MOST_SIDE_BY_SIDE = 128  # trials that `side_by_side=auto` has a worker take at once

Options = dict[str, Any]


def sweep(arguments: Sequence[str], config_folder: Path) -> None:
    """Do what `python sweep.py` is asked for; raise `Exit` unless the study is complete."""
    first = arguments[0] if arguments else ""
    action, _, value = first.partition("=")
    options, overrides = divide(arguments[1:])
    engine = options.get("engine", "own")
    if action in ACTIONS:
        if overrides:
            rest = overrides[0]
            raise UserError(f"{rest}: a study keeps its config; {action}= takes no overrides")
        ACTIONS[action](Path(value), config_folder, options)
    elif not first.endswith((".yaml", ".yml")):
        hint = suggest(action, ACTIONS) if "=" in first else ""
        raise UserError(f"{first or 'nothing given'}: name a sweep file{hint}\n{__doc__}".strip())
    elif complaint := mismatch(engine, Literal["own", "wandb"]):
        raise UserError(f"engine={engine}: must be {complaint}")
    elif engine == "wandb":
        from experiments.search import agents

        folder = study_folder(options, Path(first).stem)
        agents.begin(Path(first), overrides, options, config_folder, folder)
    else:
        with local.standing_by(options, config_folder) as workers:
            from experiments.search.plan import plan_of_file
            from experiments.search.readers import read_sweep_file

            plan = plan_of_file(read_sweep_file(Path(first)), overrides, options, config_folder)
            begin(plan, study_folder(options, plan.name), config_folder, options, workers)


def divide(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Divide arguments into the search's own and overrides of the config.

    Returns:
        The values of the search's own keys, where `cluster.<key>` joins `cluster`, and the rest.
    """
    options: Options = {}
    overrides = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        group, _, inner = key.partition(".")
        if not equals or group not in SEARCH_KEYS or (inner and group != "cluster"):
            overrides.append(argument)
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{argument}: {text!r} cannot be read") from error
        if group == "cluster":
            options.setdefault("cluster", {})[inner or "name"] = value
        else:
            options[key] = value
    return options, overrides


def study_folder(options: Options, name: str) -> Path:
    """Return the folder of a new study: the one that is asked for, or a new one below `runs`."""
    if "study" in options:
        return Path(str(options["study"])).absolute()
    now = datetime.datetime.now()
    unique = uuid.uuid4().hex[:6]
    return Path("runs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{name}_{unique}").absolute()


def begin(
    plan: "Plan",
    folder: Path,
    config_folder: Path,
    options: Options,
    workers: local.Workers | None,
) -> None:
    """Make a study and start work on it, as `launch` does."""
    from experiments.search.study import create_study

    if plan.side_by_side == "auto":
        share = -(-plan.n_trials // local.worker_count(options))
        plan = dataclasses.replace(plan, side_by_side=min(share, MOST_SIDE_BY_SIDE))
    study = create_study(plan, folder, config_folder)
    print(f"{plan.name}: {plan.n_trials} trials, {plan.method} search, in {folder}", flush=True)
    launch(study, options, workers)


def launch(study: "Study", options: Options, workers: local.Workers | None) -> None:
    """Have workers of this machine work, and wait for them; or queue some on the study's cluster.

    Raises:
        Exit: the study is not complete, or no trial of it came to a value.
    """
    from experiments.search.results import ending, watching
    from experiments.search.slurm import Task, read_cluster
    from experiments.search.study import CANCEL

    if workers is None:
        count = local.worker_count(options)
        program = study.configs.folder.parent / "sweep.py"
        cluster = read_cluster(study.configs.folder, study.plan.cluster)
        assert cluster is not None
        command = [sys.executable, str(program), f"worker={study.folder}"]
        tasks = [Task(command, cancelled=study.folder / CANCEL)] * count
        job = cluster.submit(tasks, study.folder, study.plan.name)
        print(f"job {job}, an array of {count} workers; they print into {study.folder}/slurm")
        print(f"watch       python sweep.py status={study.folder}")
        print(f"cancel      python sweep.py cancel={study.folder}")
        return
    with watching(study) as look:
        asked = workers.work(study, look)
    print(ending(study))
    if study.complete:
        if study.best() is None:
            raise Exit(EXIT_CODES["failed"])
        return
    print(f"go on with  python sweep.py resume={study.folder}")
    if asked or study.cancelled:
        raise Exit(EXIT_CODES["interrupted"])
    line = local.last_line(study)
    raise UserError(
        f"the workers ended before the study did: {line} (see {study.folder}/{local.LOGS})"
    )


def status(folder: Path, config_folder: Path, _: Options) -> None:
    """Show the study, and its jobs in the queue of a cluster."""
    from experiments.search.results import follow
    from experiments.search.slurm import jobs, queue
    from experiments.search.study import Study

    if ids := jobs(folder):
        print(f"Slurm jobs {', '.join(ids)}: {queue(folder)}", flush=True)
    follow(Study(folder, config_folder))


def resume(folder: Path, config_folder: Path, options: Options) -> None:
    """Start workers on a study that exists, with a larger budget if one is given."""
    from experiments.search.plan import read_plan

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
    with local.standing_by(options, config_folder, cluster["name"]) as workers:
        from experiments.search.slurm import read_cluster
        from experiments.search.study import CANCEL, Study

        read_cluster(config_folder, cluster)
        dataclasses.replace(plan, n_trials=budget, cluster=cluster).save(folder)
        (folder / CANCEL).unlink(missing_ok=True)
        study = Study(folder, config_folder)
        study.lay_down()
        launch(study, options, workers)


def cancel(folder: Path, config_folder: Path, _: Options) -> None:
    """Ask all workers to save their trials and stop."""
    from experiments.search.plan import read_plan
    from experiments.search.slurm import cancel_jobs
    from experiments.search.study import CANCEL

    read_plan(folder)
    (folder / CANCEL).touch()
    cancel_jobs(folder)
    print(f"its workers save and stop; go on with: python sweep.py resume={folder}")


def worker(folder: Path, config_folder: Path, options: Options) -> None:
    """Run one worker of the study in `folder`; with `-` its launcher names the study later."""
    name, configs = options.get("name"), None
    if folder == Path("-"):
        study = local.study_to_work_on(str(name))
        if study is None:
            return
        folder, configs = study
    from experiments.search.worker import work  # imports JAX

    logging.basicConfig(
        format="%(asctime)s %(message)s",
        level=logging.INFO,
        stream=sys.stdout,
        force=True,  # instead of the handler that Orbax has installed
    )
    for talkative in ("absl", "jax"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    work(folder, config_folder, name, configs)


ACTIONS = {"status": status, "resume": resume, "cancel": cancel, "worker": worker}
