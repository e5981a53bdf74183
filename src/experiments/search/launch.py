"""Starting the workers of a study, here or on a cluster."""

import dataclasses
import sys
from pathlib import Path

from experiments.errors import EXIT_CODES, Exit, UserError
from experiments.search import local
from experiments.search.local import Crew
from experiments.search.options import Options, worker_count
from experiments.search.plan import Plan
from experiments.search.slurm import Task, read_cluster
from experiments.search.study import CANCEL, Study, create_study
from experiments.search.watch import ending, watching

MOST_LANES = 128  # that `lanes=auto` has a worker take at once


def begin(
    plan: Plan, folder: Path, config_folder: Path, options: Options, crew: Crew | None
) -> None:
    """Makes a study and has it worked on; see `launch`."""
    count = worker_count(options)
    if plan.lanes == "auto":
        share = -(-plan.n_trials // count)
        plan = dataclasses.replace(plan, lanes=min(share, MOST_LANES))
    study = create_study(plan, folder, config_folder)
    print(f"{plan.name}: {plan.n_trials} trials, {plan.method} search, in {folder}", flush=True)
    launch(study, options, crew)


def launch(study: Study, options: Options, crew: Crew | None) -> None:
    """Sets the crew to work and waits; without one starts workers on the study's cluster.

    Raises:
        Exit: the study is not complete, or no trial of it came to a value.
    """
    if crew is None:
        count = worker_count(options)
        sweep = study.configs.folder.parent / "sweep.py"
        cluster = read_cluster(study.configs.folder, study.plan.cluster)
        assert cluster is not None
        command = [sys.executable, str(sweep), f"worker={study.folder}"]
        tasks = [Task(command, cancelled=study.folder / CANCEL)] * count
        job = cluster.submit(tasks, study.folder, study.plan.name)
        print(f"job {job}, an array of {count} workers; they print into {study.folder}/slurm")
        print(f"watch       python sweep.py status={study.folder}")
        print(f"cancel      python sweep.py cancel={study.folder}")
        return
    with watching(study) as look:
        asked = crew.work(study, look)
    print(ending(study))
    if study.complete:
        if study.best() is None:
            raise Exit(EXIT_CODES["failed"])
        return
    cancelled = (study.folder / CANCEL).exists()
    print(f"go on with  python sweep.py resume={study.folder}")
    if asked or cancelled:
        raise Exit(EXIT_CODES["interrupted"])
    words = local.last_words(study)
    raise UserError(
        f"the workers ended before the study did: {words} (see {study.folder}/{local.LOGS})"
    )
