"""Runs and workers as jobs of a Slurm cluster, through submitit.

Slurm sends SIGUSR2 to a job that nears its time limit or that is preempted. The program in it
saves and ends, and the job goes back into the queue; when it starts again the program goes on from
what it saved. A job that is cancelled or killed is not queued again.
"""

import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from submitit import JobEnvironment, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from experiments import machine
from experiments.core import trust
from experiments.core.config import build, check
from experiments.errors import EXIT_CODES, UserError, suggest
from experiments.machine import launched_here
from experiments.types import NonNegativeInt, Positive, PositiveInt

FOLDER = "slurm"  # scripts and output of the jobs, in the folder of their run or study
NOTICE = signal.SIGUSR2  # the signal that submitit has Slurm send


@dataclass(frozen=True)
class Task:
    """The program of a job.

    Args:
      command: starts it.
      cancelled: a file; a job for which it exists does not go back into the queue.
      directory: it starts there, if there is such a folder: among the user's own code and data.
    """

    command: Sequence[str]
    cancelled: Path | None = None
    directory: Path = field(default_factory=Path.cwd)

    def __call__(self) -> None:
        """Run it, in the job, which ends with its exit code if it fails."""
        signals: list[int] = []
        job = JobEnvironment()
        # the child inherits this: the signal must not end a program that does not handle it yet
        signal.signal(NOTICE, signal.SIG_IGN)
        environment = os.environ | launched_here()
        where = self.directory if self.directory.is_dir() else None
        child = subprocess.Popen(self.command, env=environment, cwd=where)

        def pass_on(number: int, _frame: Any) -> None:
            signals.append(number)
            if number == NOTICE:  # not every program takes it for a request to end
                child.terminate()

        for number in (NOTICE, signal.SIGTERM):
            signal.signal(number, pass_on)
        code = child.wait()
        # a program that was asked to end may exit with 0, as `wandb agent` does
        asked_to_end = signals or code == EXIT_CODES["interrupted"]
        if code and not asked_to_end:
            print(f"exit code {code}: {shlex.join(self.command)}", flush=True)
            # not an `Exception`, of which submitit would show the traceback
            sys.exit(code if code > 0 else 128 - code)
        cancelled = self.cancelled is not None and self.cancelled.exists()
        if asked_to_end and not cancelled and job.global_rank == 0:
            # a job that was cancelled on the cluster is no longer running for Slurm
            state = _slurm("squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T")
            if state.strip() == "RUNNING":
                print(f"job {job.job_id} goes back into the queue", flush=True)
                _slurm("scontrol", "requeue", job.job_id)


@dataclass(frozen=True)
class Slurm:
    """The resources that a job asks the cluster for.

    Args:
      partition, account, qos: null: the cluster's own choice.
      time: minutes.
      notice: seconds before its end at which a job gets a signal to save.
      gpus, cpus, memory: of each node; memory in GB.
      setup: shell lines that come first.
      options: any other option of sbatch by its name.
    """

    partition: str | None
    account: str | None
    qos: str | None
    time: PositiveInt
    notice: PositiveInt
    gpus: NonNegativeInt | None
    cpus: PositiveInt | None
    memory: Positive | None
    setup: list[str]
    options: dict

    def __post_init__(self) -> None:
        for key in ("partition", "account", "qos"):
            if "\n" in (getattr(self, key) or ""):  # which would be a line of the script
                raise UserError(f"cluster.{key}={getattr(self, key)!r}: must be one line")
        if self.notice > 30 * self.time:
            raise UserError(
                f"cluster.notice={self.notice}: a job of {self.time} minutes would have to save "
                f"in its first half; say cluster.time=... or a shorter notice"
            )

    def submit(self, tasks: Sequence[Task], folder: Path, name: str, nodes: int = 1) -> str:
        """Queue a job of `nodes` nodes per task, an array where there are several; return its id.

        Each node runs the task once. Scripts and output go into `folder`/slurm.

        Raises:
            UserError: there is no Slurm here, or it does not take the job.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError("there is no Slurm here (sbatch); log in to a machine of the cluster")
        steps = ["--kill-on-bad-exit=1"]
        if self.cpus is not None:  # since Slurm 22.05 a step does not take it over from its job
            steps.append(f"--cpus-per-task={self.cpus}")
        executor = SlurmExecutor(folder=folder.absolute() / FOLDER)
        executor.update_parameters(
            job_name=name,
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            time=self.time,
            nodes=nodes,
            ntasks_per_node=1,
            gpus_per_node=self.gpus,
            cpus_per_task=self.cpus,
            mem=None if self.memory is None else f"{round(self.memory * 1024)}M",
            signal_delay_s=self.notice,
            setup=self.setup,
            srun_args=steps,
            stderr_to_stdout=True,
            additional_parameters={"requeue": True, **self.options},
        )
        try:  # submitit prints what sbatch says; here it becomes the error's message
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except (FailedJobError, FailedSubmissionError) as error:
            said = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
            raise UserError(f"Slurm does not take the job: {(said or [str(error)])[-1]}") from error
        return jobs[0].job_id.partition("_")[0]


def read_cluster(config_folder: Path, block: Mapping[str, Any]) -> Slurm | None:
    """Read the cluster of a study: a file of a folder `cluster`, and changes to it.

    The folder is that of the user's own config files, or of `config_folder`.

    Returns:
        The cluster; None for this machine.

    Raises:
        UserError: there is no such file, or a key or value is wrong.
    """
    name = str(block["name"])
    paths = {
        path.stem: path
        for folder in (*trust.own_folders(), config_folder)
        for path in folder.glob("cluster/*.yaml")
    }
    if (path := paths.get(name)) is None:
        names = sorted(paths)
        raise UserError(f"cluster={name}: must be one of {', '.join(names)}{suggest(name, names)}")
    node = yaml.safe_load(path.read_text())
    changes = {key: value for key, value in block.items() if key != "name"}
    for key in changes:
        if key not in node or key == "_target_":
            hint = suggest(key, node) if node else "; did you mean cluster=slurm?"
            raise UserError(f"cluster.{key}: cluster={name} has no such key{hint}")
    check(node | changes, "cluster")
    return build(node | changes) if node else None


def check_array(workers: int, trials: int, side_by_side: int) -> None:
    """Check that there is something to do for each worker of an array job; raises `UserError`."""
    most = -(-trials // side_by_side)
    if workers > most:
        at_once = f", {side_by_side} at a time" if side_by_side > 1 else ""
        raise UserError(
            f"workers={workers}: there are {trials} trials{at_once}; say workers={most}"
        )


def submit_run(folder: Path, cluster: Slurm, nodes: int, arguments: Sequence[str]) -> str:
    """Queue a run with these arguments on `nodes` nodes; return how to follow the job.

    Each start of the job is one of this program, so the arguments must resume what they begin.
    """
    folder = folder.absolute()
    command = [*machine.command("run"), *arguments]
    job = cluster.submit([Task(command)], folder, folder.name, nodes)
    return (
        f"job {job} runs in {folder}\n"
        f"watch       tail -F {shlex.quote(f'{folder}/{FOLDER}/{job}_0_log.out')}\n"
        f"cancel      scancel {job}"
    )


def jobs(folder: Path) -> list[str]:
    """Return the ids of all jobs that were queued for a run or study."""
    return sorted(path.name.partition("_")[0] for path in (folder / FOLDER).glob("*_submission.sh"))


def queue(folder: Path) -> str:
    """Return the number of jobs of a run or study in the queue: `2 pending, 6 running`."""
    wanted = set(jobs(folder))
    try:
        listed = _slurm("squeue", "--me", "--noheader", "--array", "--format=%F %T")
    except UserError as error:  # a study can be looked at where there is no Slurm
        return str(error)
    lines = [line.split() for line in listed.splitlines()]
    states = Counter(state.lower() for job, state in lines if job in wanted)
    return ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none in the queue"


def cancel_jobs(folder: Path) -> None:
    """Take all jobs of a run or study from the queue; those that run save and stop."""
    if ids := jobs(folder):
        _slurm("scancel", "--quiet", *ids)


def _slurm(*command: str) -> str:
    """Return the output of a command of Slurm; raises `UserError` if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise UserError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
