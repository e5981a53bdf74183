"""The actions of the program `sweep` on a study: begin, status, resume, stop, cancel, worker."""

import dataclasses
import logging
import os
import sys
from pathlib import Path
from shlex import quote
from typing import Any

from experiments.core.config import mismatch
from experiments.errors import EXIT_CODES, Exit, UserError
from experiments.machine import called, command
from experiments.search import configs, local, points
from experiments.search.plan import Plan, read_plan
from experiments.search.readers import read_space
from experiments.search.results import ending, follow, watching, winner_of
from experiments.search.shared.outcomes import in_one_line
from experiments.search.slurm import Task, cancel_jobs, check_array, jobs, queue, read_cluster
from experiments.search.study import CANCEL, TRIALS, Study, create_study, state_of
from experiments.tracking.log_file import Formatter
from experiments.tracking.wandb import leave_run_aside
from experiments.types import PositiveInt

Options = dict[str, Any]

RESUMED = ("n_trials", "workers", "gpus_per_worker", "cluster", "allow", "retry", "config_dir")
"""Options that `resume` takes."""

MOST_SIDE_BY_SIDE = 128  # trials that `side_by_side=auto` has a worker take at once


def begin(
    plan: Plan, folder: Path, config_folder: Path, options: Options, workers: local.Workers | None
) -> None:
    """Make a study and start work on it, as `launch` does."""
    if plan.side_by_side == "auto":
        share = -(-plan.n_trials // local.worker_count(options))
        plan = dataclasses.replace(plan, side_by_side=min(share, MOST_SIDE_BY_SIDE))
    if workers is None:
        check_array(local.worker_count(options), plan.n_trials, int(plan.side_by_side))
    study = create_study(plan, folder, config_folder)
    print(f"{plan.name}: {plan.n_trials} trials, {plan.method} search, in {folder}", flush=True)
    launch(study, options, workers)


def launch(study: Study, options: Options, workers: local.Workers | None) -> None:
    """Have workers of this machine work, and wait for them; or queue some on the study's cluster.

    Raises:
        Exit: the study is not complete, or no trial of it came to a value.
    """
    if workers is None:
        count = local.worker_count(options)
        cluster = read_cluster(study.configs.folder, study.plan.cluster)
        assert cluster is not None
        program = [*command("sweep"), f"worker={study.folder}", *configs.arguments()]
        tasks = [Task(program, cancelled=study.folder / CANCEL)] * count
        job = cluster.submit(tasks, study.folder, study.plan.name)
        print(f"job {job}, an array of {count} workers; they print into {study.folder}/slurm")
        print(f"watch       {called('sweep')} {quote(f'status={study.folder}')}")
        print(f"cancel      {called('sweep')} {quote(f'cancel={study.folder}')}")
        return
    with watching(study) as look:
        asked = workers.work(study, look)
    print(ending(study))
    reasons = f"{'; '.join(dict.fromkeys(workers.reasons))} (see {study.folder}/{local.LOGS})"
    if study.complete:
        if not study.ranked():
            raise Exit(EXIT_CODES["failed"])
        best = study.best()
        if workers.reasons and best and winner_of(study).get("trial") != best.number:
            raise UserError(f"the winner is not tested: {reasons}; resume= tests it")
        return
    print(_go_on(study))
    if asked or study.cancelled:
        raise Exit(EXIT_CODES["interrupted"])
    raise UserError(f"the workers ended before the study did: {reasons}")


def _go_on(study: Study) -> str:
    return f"go on with  {called('sweep')} {quote(f'resume={study.folder}')}"


def status(folder: Path, config_folder: Path, _: Options) -> None:
    """Show the study, and its jobs in the queue of a cluster."""
    if ids := jobs(folder):
        print(f"Slurm jobs {', '.join(ids)}: {queue(folder)}", flush=True)
    study = Study(folder, config_folder)
    if not study.complete and not study.claims.alive and not ids:
        print(f"no worker is alive; {_go_on(study)}")
    follow(study)


def resume(folder: Path, config_folder: Path, options: Options) -> None:
    """Start workers on a study that exists, with a larger budget or failed trials anew."""
    plan = read_plan(folder)
    for key in options:
        if key not in RESUMED:
            raise UserError(f"{key}={options[key]}: a study keeps it; resume= can change n_trials")
    if (retry := options.get("retry", "failed")) != "failed":
        raise UserError(f"retry={retry}: must be failed, for the trials in this state")
    budget = options.get("n_trials", plan.n_trials)
    if mismatch(budget, PositiveInt) or budget < plan.n_trials:
        raise UserError(f"n_trials={budget}: must be a whole number of at least {plan.n_trials}")
    changes = options.get("cluster", {})
    cluster = changes if "name" in changes else plan.cluster | changes
    for key in ("setup", "options"):
        if (given := cluster.get(key)) and key not in changes:
            problem = f"{folder} may not say what a job runs; say it again: cluster.{key}=..."
            raise UserError(f"cluster.{key}={given}: {problem}")
    config_dir = own_configs(plan, options.get("config_dir"))
    trust_files_of(config_dir, config_folder, options)
    configs_then = configs.configs_of(config_folder, tuple(plan.overrides), config_dir)
    space = read_space(plan.parameters, configs_then)
    space.vet(folder)  # before anything is written
    most = points.most(plan.method, plan.n_trials if plan.method == "grid" else budget, space)
    if budget > plan.n_trials and most is not None and budget > most:
        said = f"the {plan.method} search has {most} combinations of values"
        raise UserError(f"n_trials={budget}: {said}; begin a new study")
    with local.standing_by(options, cluster["name"]) as workers:
        read_cluster(config_folder, cluster)
        changed = {"n_trials": budget, "cluster": cluster, "config_dir": config_dir}
        dataclasses.replace(plan, **changed).save(folder)
        (folder / CANCEL).unlink(missing_ok=True)
        study = Study(folder, config_folder)
        study.lay_down()
        if "retry" in options:
            diverged = sum(state_of(trial) == "diverged" for trial in study.trials())
            rest = f"; left out: {diverged} that diverged, and would again" if diverged else ""
            print(f"{study.retry()} failed trials run again, as new ones{rest}", flush=True)
        left = sum(not trial.state.is_finished() for trial in study.trials())
        if workers is None and left:
            check_array(local.worker_count(options), left, int(study.plan.side_by_side))
        launch(study, options, workers)


def own_configs(plan: Plan, given: str | None) -> str | None:
    """Return the folder of the user's own config files with which a study goes on.

    That of another working directory, which nobody has named, replaces the study's own only where
    that is gone.
    """
    gone = plan.config_dir is not None and not Path(plan.config_dir).is_dir()
    named = given not in (None, str(Path.cwd() / "conf"))
    return given if named or (gone and given) else plan.config_dir


def trust_files_of(config_dir: str | None, config_folder: Path, options: Options) -> None:
    """Trust no config files but those of the study: code in two folders may have one name."""
    if options.get("config_dir") != config_dir:
        configs.trust_own(config_folder, None, options.get("allow", []))


def stop(trial: Path, config_folder: Path, _: Options) -> None:
    """Ask the worker of a trial to end it; `trial` is its folder."""
    number, folder = trial.name, trial.absolute().parent.parent
    if trial.absolute().parent.name != TRIALS or not number.isdigit():
        raise UserError(f"stop={trial}: name the folder of a trial: stop=<study folder>/trials/7")
    study = Study(folder, config_folder)
    found = {str(one.number): state_of(one) for one in study.trials()}
    if (state := found.get(number)) != "running":
        running = ", ".join(n for n, one in found.items() if one == "running") or "none"
        said = f"is {state}" if state else "does not exist"
        raise UserError(f"stop={trial}: this trial {said}; there run {running}")
    study.stop(int(number))
    print(f"trial {number} ends with its next epoch at the latest; the others go on")


def cancel(folder: Path, config_folder: Path, _: Options) -> None:
    """Ask all workers to save their trials and stop."""
    read_plan(folder)
    (folder / CANCEL).touch()
    cancel_jobs(folder)
    print(f"its workers save and stop; go on with: {called('sweep')} {quote(f'resume={folder}')}")


def worker(folder: Path, config_folder: Path, options: Options) -> None:
    """Run one worker of the study in `folder`; with `-` its launcher names the study later.

    It works where the study was begun: paths in the config may be relative.
    """
    from experiments.search.worker import work  # imports JAX, while the launcher plans

    name, composed = options.get("name"), None
    if folder == Path("-"):
        if (found := local.wait_for_study(str(name))) is None:
            return
        folder, composed = found
    folder = folder.absolute()
    plan = read_plan(folder)
    trust_files_of(plan.config_dir, config_folder, options)
    if plan.directory and Path(plan.directory).is_dir():
        os.chdir(plan.directory)
    # by force: instead of the handler that Orbax has installed
    logging.basicConfig(stream=sys.stdout, force=True)
    logging.root.handlers[0].setFormatter(Formatter("%(asctime)s %(message)s"))
    logging.root.setLevel(logging.INFO)
    for talkative in ("absl", "jax", "matplotlib"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    leave_run_aside()
    try:
        work(folder, config_folder, name, composed)
    except Exception as error:
        local.tell(in_one_line(error))
        raise
