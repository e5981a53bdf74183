"""Studies and runs on a real Slurm of two nodes: arrays, killed workers, preemption, cancelling."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from experiments.cli.sweep import sweep as run_sweep
from experiments.core.config import check
from experiments.errors import UserError
from experiments.search.slurm import Task, cancel_jobs, jobs, read_cluster, submit_run
from experiments.training.run_folder import saved_steps
from slurm_cluster.cluster import Cluster, UnavailableError
from support import NAME, ROOT
from wandb_server.server import serve

SWEEP = {
    "program": "run.py",
    "method": "random",
    "metric": {"name": "val/accuracy", "goal": "maximize"},
    "parameters": {
        "optim.learning_rate": {
            "distribution": "log_uniform_values",
            "min": 1e-3,
            "max": 1e-1,
        }
    },
}
TINY = ["logger=none", "model.hidden=[8]", "trainer.figures=false"]
LONG = [*TINY, "trainer.epochs=100000", "trainer.max_time=4", "trainer.checkpoint_every=1"]


@pytest.fixture(scope="session")
def running_cluster():
    try:
        with Cluster() as running:
            yield running
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(running_cluster, monkeypatch) -> Cluster:
    """A running cluster; this process is one of its user's."""
    monkeypatch.setenv("SLURM_CONF", running_cluster.environment["SLURM_CONF"])
    return running_cluster


@pytest.fixture
def sweep(cluster, capsys) -> Callable[..., str]:
    """Return the text that `sweep.py` prints."""

    def call(*arguments: str) -> str:
        run_sweep(arguments, ROOT / "conf")
        return capsys.readouterr().out

    return call


@pytest.fixture
def submit(sweep, tmp_path, data_home) -> Callable[..., Path]:
    """Queue the workers of a new study; return its folder."""

    def call(*arguments: str, trials: int, heartbeat: float = 10) -> Path:
        file, folder = tmp_path / "sweep.yaml", tmp_path / "study"
        file.write_text(yaml.safe_dump(SWEEP))
        own = ["cluster=slurm", f"study={folder}", f"n_trials={trials}", f"heartbeat={heartbeat}"]
        said = sweep(str(file), *own, *data_home, *arguments)
        assert not (folder / "results.csv").exists()  # it does not wait for the workers
        (job,) = jobs(folder)
        assert f"job {job}" in said
        return folder

    return call


def until(true: Callable[[], object], folder: Path, seconds: float = 90) -> None:
    """Wait until `true()`; after `seconds` fail with the text that the jobs printed."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            logs = (folder / "slurm").glob("*.out")
            pytest.fail("\n".join(log.read_text()[-3000:] for log in logs))
        time.sleep(0.2)


def queue_is_empty(cluster: Cluster) -> bool:
    return not cluster.command("squeue", "--noheader")


def states(folder: Path) -> Counter[str]:
    lines = (folder / "results.csv").read_text().splitlines()
    return Counter(line.split(",")[1] for line in lines[1:])


def saved_trials(folder: Path) -> list[Path]:
    return [trial for trial in folder.glob("trials/*") if saved_steps(trial)]


def output(folder: Path) -> str:
    return "\n".join(path.read_text() for path in (folder / "slurm").glob("*.out"))


def lines_of(run: Path) -> list[dict]:
    whole, _, _ = (run / "metrics.jsonl").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def test_an_array_of_workers_does_a_study_though_one_of_them_is_killed(cluster, submit, sweep):
    folder = submit(*LONG, "workers=2", trials=3, heartbeat=4)
    until(lambda: len(saved_trials(folder)) == 2, folder)
    (job,) = jobs(folder)
    cluster.command("scancel", "--signal=KILL", f"{job}_1")
    until(lambda: queue_is_empty(cluster), folder)
    assert states(folder) == {"finished": 3}
    assert "goes back into the queue" not in output(folder)
    status = sweep(f"status={folder}")
    assert f"Slurm jobs {job}: none in the queue" in status
    assert "3 finished" in status


@pytest.mark.slow
def test_a_preempted_job_goes_on_from_its_checkpoint(cluster, submit, sweep):
    endless = [option for option in LONG if "max_time" not in option]
    folder = submit(*endless, "workers=1", trials=1)
    until(lambda: saved_trials(folder), folder)
    urgent = ["--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true"]
    cluster.command("sbatch", *urgent)
    until(lambda: "goes back into the queue" in output(folder), folder)
    reached = json.loads((folder / "trials/0/summary.json").read_text())
    assert reached["status"] == "interrupted"
    run = folder / "trials/0"
    until(lambda: any(line["step"] > reached["step"] for line in lines_of(run)), folder)
    sweep(f"cancel={folder}")
    until(lambda: queue_is_empty(cluster), folder)
    steps = [line["step"] for line in lines_of(run)]
    assert steps == sorted(set(steps))  # nothing was trained twice


@pytest.mark.slow
def test_agents_of_wandb_run_as_an_array(cluster, sweep, tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    file, folder = tmp_path / "sweep.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump(SWEEP | {"run_cap": 4}))
    own = ["engine=wandb", "cluster=slurm", "workers=2", f"study={folder}", "logger.mode=online"]
    with serve() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        said = sweep(str(file), *own, *TINY[1:], "trainer.epochs=2", *data_home)
        assert "an array of 2 agents" in said
        until(lambda: queue_is_empty(cluster), folder, seconds=240)
        (made,) = server.sweeps.values()
        assert sorted(server.runs) == sorted(made.runs), output(folder)
        assert len(server.runs) == 4
        for run in server.runs.values():
            assert (run.sweep, run.exit_code) == (made.id, 0), output(folder)
            assert run.summary["status"] == "finished"


@pytest.mark.slow
def test_a_cancelled_study_leaves_the_queue_and_can_be_resumed(cluster, submit, sweep):
    folder = submit(*LONG, "workers=3", trials=3)
    until(lambda: saved_trials(folder), folder)
    assert "1 pending, 2 running" in sweep(f"status={folder}")
    sweep(f"cancel={folder}")
    until(lambda: queue_is_empty(cluster), folder, seconds=30)
    assert "goes back into the queue" not in output(folder)
    resumed = sweep(f"resume={folder}", "cluster=local", "workers=2")
    assert "3 finished" in resumed


@pytest.mark.slow
def test_a_program_that_knows_only_sigterm_is_asked_to_end_too(cluster, tmp_path):
    """As `wandb agent` is, which waits for its run to save and then says that all is well."""
    slurm = read_cluster(ROOT / "conf", {"name": "slurm"})
    assert slurm is not None
    loop = "trap 'echo saving; exit 0' TERM; echo waiting; while true; do sleep 0.1; done"
    job = slurm.submit([Task(["bash", "-c", loop])] * 2, tmp_path, "agents")
    until(lambda: output(tmp_path).count("waiting") == 2, tmp_path)
    cluster.command("scancel", "--signal=USR2", f"{job}_1")
    until(lambda: f"job {job}_1 goes back into the queue" in output(tmp_path), tmp_path)
    until(lambda: output(tmp_path).count("waiting") == 3, tmp_path)
    assert output(tmp_path).count("saving") == 1
    cancel_jobs(tmp_path)
    until(lambda: queue_is_empty(cluster), tmp_path)


@pytest.mark.slow
def test_a_run_on_two_nodes_is_one_run(cluster, run_cli, tmp_path):
    folder = tmp_path / "run"
    options = [*TINY, "trainer.epochs=3", "cluster.time=5"]
    assert run_cli("cluster=slurm", "nodes=2", *options, folder=folder)[0] == 0
    until(lambda: queue_is_empty(cluster), folder)
    assert (folder / "summary.json").exists(), output(folder)
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert [line["step"] for line in lines_of(folder) if "val/loss" in line] == [20, 40, 60]


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 1])
def test_tasks_of_srun_are_one_run_in_one_folder(cluster, tmp_path, data_home, tasks):
    program = ["experiments.cli.command", "run", *TINY, *data_home, "trainer.epochs=1"]
    where = [f"--chdir={tmp_path}", f"--ntasks={tasks}", f"--nodes={tasks}"]
    said = cluster.command("srun", *where, sys.executable, "-m", *program, timeout=120)
    (folder,) = tmp_path.glob("runs/*/*")
    assert said.count("status      finished") == 1
    assert len([line for line in lines_of(folder) if "val/loss" in line]) == 1


@pytest.mark.slow
def test_a_job_that_fails_prints_plain_lines(cluster, run_cli, tmp_path):
    folder = tmp_path / NAME
    options = [*TINY, "data=mnist", f"data.dir={tmp_path}", "cluster.time=5"]
    assert run_cli("cluster=slurm", *options, folder=folder)[0] == 0
    until(lambda: queue_is_empty(cluster), folder)
    assert "error: data set 'mnist' is not prepared" in output(folder)
    assert "exit code 2" in output(folder)
    assert "Traceback" not in output(folder)


def test_what_slurm_does_not_take_is_named(cluster, run_cli):
    code, error = run_cli("cluster=slurm", "cluster.partition=gpu")
    assert code == 2
    assert error.startswith("error: Slurm does not take the job")
    assert "Invalid partition" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"name": "slrum"}, ["cluster=slrum", "'slurm'"]),
        ({"name": "slurm", "partion": "a"}, ["cluster.partion", "'partition'"]),
        ({"name": "slurm", "gpus": -1}, ["cluster.gpus=-1", "at least 0"]),
        ({"name": "slurm", "time": "1h"}, ["cluster.time=1h", "a whole number"]),
        ({"name": "slurm", "time": 2}, ["cluster.notice=120", "first half"]),
        ({"name": "local", "gpus": 1}, ["cluster.gpus", "cluster=slurm"]),
    ],
)
def test_a_wrong_cluster_is_named(block, words):
    with pytest.raises(UserError) as caught:
        read_cluster(ROOT / "conf", block)
    for word in words:
        assert word in str(caught.value)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Programs in the place of Slurm's that only note what they are given."""
    for name in ("sbatch", "srun"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho Submitted batch job 7\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_what_is_printed_of_a_job_can_be_copied(stand_in, tmp_path):
    folder, slurm = tmp_path / NAME, read_cluster(ROOT / "conf", {"name": "slurm"})
    assert slurm is not None
    watch = submit_run(folder, slurm, 1, []).splitlines()[1].removeprefix("watch")
    (folder / "slurm" / "7_0_log.out").write_text("hello")
    tail = watch.replace("tail -F", "tail")
    assert subprocess.run(["bash", "-c", tail], capture_output=True, text=True).stdout == "hello"


def test_every_setting_reaches_sbatch(stand_in, tmp_path):
    settings = {"partition": "long", "account": "lab", "qos": "high", "time": 30, "gpus": 2}
    settings |= {"cpus": 8, "memory": 16, "setup": ["module load cuda"]}
    settings |= {"options": {"constraint": "a100"}}
    node = yaml.safe_load((ROOT / "conf/cluster/slurm.yaml").read_text()) | settings
    check(node, "cluster")
    slurm = read_cluster(ROOT / "conf", {"name": "slurm", **settings})
    assert slurm is not None
    assert slurm.submit([print], tmp_path, "study", nodes=4) == "7"
    script = (tmp_path / "script").read_text()
    wanted = ["partition=long", "account=lab", "qos=high", "time=30", "gpus-per-node=2"]
    wanted += ["cpus-per-task=8", "mem=16384M", "nodes=4", "constraint=a100", "requeue"]
    for flag in [*wanted, "signal=USR2@120", "job-name=study"]:
        assert f"#SBATCH --{flag}\n" in script
    assert script.index("module load cuda") < script.index("srun")
    assert "--cpus-per-task=8" in script[script.index("srun") :]
