"""W&B as the engine of a search: its server draws the values, its agents run `run`.

experiments sweep sweeps/lenet5_lr_wd.yaml engine=wandb [workers=8] [cluster=slurm] [any override]

Each run has its folder in the folder of the study. A run that was stopped by the cluster is marked
as preempted; the server gives it to an agent again, and it goes on from its checkpoint.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import EXIT_CODES, Exit, UserError
from experiments.machine import PARENT, STOP_SIGNALS, command, end_with_launcher, launched_here
from experiments.processes import gpus
from experiments.search import configs, local
from experiments.search.local import worker_count
from experiments.search.readers import SweepFile, read_sweep_file
from experiments.search.slurm import Task, check_array, read_cluster
from experiments.tracking.wandb import WANTED_BACK
from experiments.tracking.wandb_names import overrides_of, project_of
from experiments.training.run_folder import is_run, said_again

METHODS = ("grid", "random", "bayes")  # of W&B's server
OPTIONS = ("engine", "study", "workers", "gpus_per_worker", "cluster", "allow", "config_dir")


def begin(
    path: Path, overrides: Sequence[str], options: dict, config_folder: Path, folder: Path
) -> None:
    """Register a sweep and start its agents; wait for them, or say where they are queued.

    `path` is of the sweep file, `folder` of the study; it is made.

    Raises:
        UserError: an option is not for this engine, or the server does not take the sweep.
        Exit: an agent was interrupted.
    """
    for key in options:
        if key not in OPTIONS:
            raise UserError(f"{key}={options[key]}: W&B decides that; say it in {path}")
    file, count = read_sweep_file(path), worker_count(options)
    if (method := file.content.get("method")) not in METHODS:
        raise UserError(f"{path}: method={method}: W&B has {', '.join(METHODS)}")
    if isinstance(file.content.get("metric"), list) or any(
        "@" in name for name in file.content["parameters"]
    ):
        raise UserError(f"{path}: W&B searches for one metric, over keys that every run has")
    cluster = read_cluster(config_folder, {"name": "local"} | options.get("cluster", {}))
    if cluster is not None and file.content.get("run_cap"):
        check_array(count, file.content["run_cap"], 1)
    for line in differences(file.content):
        print(line)
    overrides = [*overrides_of(file.content.get("command")), *overrides]
    sweep = register(file, overrides, folder, config_folder, options.get("config_dir"))
    folder.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-P", "-m", __spec__.name, "agent", sweep]
    print(f"sweep {sweep}, runs in {folder}", flush=True)
    if cluster is not None:
        job = cluster.submit([Task(program)] * count, folder, path.stem)
        print(f"job {job}, an array of {count} agents; they print into {folder}/slurm")
        print(f"cancel      scancel {job}")
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    each = local.gpus_per_worker(options)
    shares = [gpus.environment(slot, count, each) | launched_here() for slot in range(count)]
    agents = [subprocess.Popen(program, cwd=folder, env=share) for share in shares]
    try:
        codes = [process.wait() for process in agents]
    except KeyboardInterrupt:  # the agents have got it as well, and pass it on to their runs
        codes = [process.wait() for process in agents]
    if any(codes):
        raise Exit(EXIT_CODES["interrupted"])


def differences(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what W&B's search by a sweep file is another than that of the own engine."""
    if content.get("method") == "bayes":
        yield "bayes       W&B's is a Gaussian process; without engine=wandb it is Optuna's TPE"
    if content.get("early_terminate"):
        yield (
            "hyperband   W&B counts the lines that hold the metric, each an evaluation, and ends "
            "runs some time after; without engine=wandb epochs count, and a trial ends at once"
        )
    if "run_cap" not in content and content.get("method") != "grid":
        yield "runs        without run_cap W&B draws on until you stop it; the own engine asks"


def register(
    file: SweepFile,
    overrides: Sequence[str],
    folder: Path,
    config_folder: Path,
    config_dir: str | None,
) -> str:
    """Make the sweep on the server; return its name there, entity/project/id."""
    import wandb

    logger = configs.Configs(config_folder, overrides, config_dir).plain()["logger"]
    if not wandb.login(prompt=False, verify=False):
        raise UserError("engine=wandb needs an account: wandb login")
    trial = [sys.executable, "-P", "-m", __spec__.name, str(folder), str(Path.cwd())]
    trial += [*configs.arguments(), *overrides]
    content = file.content | {"command": ["${env}", *trial, "${args_no_hyphens}"]}
    entity = logger["entity"] or wandb.Api().default_entity
    project = project_of(logger["project"])
    try:
        name = wandb.sweep(content, entity=entity, project=project)
    except wandb.Error as error:
        raise UserError(f"W&B does not take {file.path}: {error}") from error
    wandb.teardown()  # the agents have client processes of their own
    return f"{entity}/{project}/{name}"


def agent(sweep: str) -> int:
    """Run an agent of W&B's; return its exit code, or the one of an interruption.

    A file tells the run's tracker that the machine is wanted back, and that it is not the sweep
    that stops the run; it is made before the run gets the signal.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted_back = Path(folder) / "wanted_back"
        program = [str(Path(sys.executable).with_name("wandb")), "agent", "--forward-signals"]
        environment = os.environ | {WANTED_BACK: str(wanted_back)}
        # Ctrl-C in a terminal reaches whole groups, and to an agent a second signal means: kill
        child = subprocess.Popen([*program, sweep], env=environment, start_new_session=True)

        def stop(_number: int, _frame: Any) -> None:
            if not wanted_back.exists():
                wanted_back.touch()
                child.terminate()

        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        end_with_launcher()
        code = child.wait()
        return EXIT_CODES["interrupted"] if wanted_back.exists() else code


def trial(folder: Path, directory: Path, arguments: Sequence[str]) -> None:
    """Become the run that an agent asks for, and go on with it if it was stopped before.

    Args:
        folder: of the study.
        directory: where the study was begun, among the user's own code and data.
    """
    run = folder / os.environ["WANDB_RUN_ID"]
    own = [*arguments, f"hydra.run.dir={run}"]
    if is_run(run):
        own = [
            *(a for a in arguments if a.startswith("--")),
            f"resume={run}",
            *said_again(arguments),
        ]
    os.environ[PARENT] = str(os.getppid())
    os.chdir(directory)
    os.execv(sys.executable, [*command("run"), *own])


if __name__ == "__main__":
    if sys.argv[1] == "agent":
        sys.exit(agent(sys.argv[2]))
    trial(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
