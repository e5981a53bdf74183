"""`run.py -m` and `sweep.py` as a user types them, with real worker processes."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli.sweep import sweep
from experiments.errors import UserError
from experiments.search.study import Study, state_of
from support import ROOT

CONFIG = ROOT / "conf"

TINY = [
    "model.hidden=[8]",
    "data.limit=128",
    "trainer.epochs=2",
    "trainer.figures=false",
    "logger=none",
]
SWEEP = """
program: run.py
run_cap: 3
metric: {name: val/loss, goal: minimize}
parameters:
  optim.learning_rate: {distribution: log_uniform_values, min: 1.0e-4, max: 0.1}
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / program), *arguments]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def results(folder: Path) -> list[dict]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.core
def test_a_multirun_is_a_study_that_can_be_shown_and_extended(tmp_path, data_home, capsys):
    folder = tmp_path / "study"
    space = ["optim=adam,sgd", "optim.learning_rate=tag(log,interval(1e-4,1e-1))"]
    command = ["-m", *space, f"hydra.sweep.dir={folder}", *TINY, *data_home]
    done = run("run.py", *command, "n_trials=2")
    assert done.returncode == 0, done.stderr
    assert "[2/2] trial" in done.stdout
    assert "best        trial" in done.stdout
    before = results(folder)
    assert [row["state"] for row in before] == ["finished", "finished"]
    assert {row["optim"] for row in before} <= {"adam", "sgd"}
    sweep([f"status={folder}"], CONFIG)
    shown = capsys.readouterr().out
    assert "2 finished" in shown
    assert f"optim.learning_rate={before[0]['optim.learning_rate']}" in shown
    with pytest.raises(UserError, match="a study keeps its config"):
        sweep([f"resume={folder}", "trainer.epochs=3"], CONFIG)
    sweep([f"resume={folder}", "n_trials=3"], CONFIG)
    assert results(folder)[:2] == before
    assert len(results(folder)) == 3


@pytest.mark.slow
def test_a_search_reads_the_users_own_config_files(tmp_path, data_home, monkeypatch):
    """Its workers trust what they name, and who resumes it says the folder again."""
    own, study = tmp_path / "own", tmp_path / "study"
    (own / "model").mkdir(parents=True)
    (own / "model" / "theirs.yaml").write_text("_target_: theirs.Net\nwidth: 4\n")
    (tmp_path / "theirs.py").write_text(
        "from experiments.models.mlp import MLP\n\n\n"
        "def Net(*, width: int, input_shape, num_classes, kernel_init, rngs):\n"
        "    more = dict(input_shape=input_shape, num_classes=num_classes, rngs=rngs)\n"
        "    options = dict(hidden=[width], activation='relu', dropout=0.0)\n"
        "    return MLP(**options, **more, kernel_init=kernel_init)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    drawn = ["model=theirs", "model.width=4,8", f"study={study}", *TINY[1:], *data_home]
    done = run("run.py", "-m", f"--config-dir={own}", *drawn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["state"] for row in results(study)] == ["finished", "finished"]
    assert f"run.py --config-dir={own} model=theirs" in (study / "best.txt").read_text()
    assert run("sweep.py", f"status={study}").returncode == 0
    refused = run("sweep.py", f"resume={study}")
    assert refused.returncode == 2
    assert "model._target_=theirs.Net" in refused.stderr
    assert run("sweep.py", f"resume={study}", f"--config-dir={own}").returncode == 0


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_no_process(tmp_path, data_home):
    path, folder = tmp_path / "lr.yaml", tmp_path / "study"
    path.write_text(SWEEP)
    long = [*TINY, *data_home, "trainer.epochs=5000", "data.batch_size=1"]
    command = [sys.executable, str(ROOT / "sweep.py"), str(path), f"study={folder}", *long]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (folder / "trials" / "0" / "metrics.jsonl").exists())
        launcher.send_signal(signal.SIGINT)
        printed, _ = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 75
    assert f"sweep.py resume={folder}" in printed
    log = next((folder / "workers").glob("*.log")).read_text()
    assert "stopped by Ctrl-C after step" in log
    assert "SIGTERM" not in log
    assert list((folder / "trials" / "0" / "checkpoints").iterdir())
    assert not workers_of(folder)
    states = [state_of(trial) for trial in Study(folder, CONFIG).trials()]
    assert states == ["waiting"] * 3
    with pytest.raises(UserError, match=f"resume={folder}"):  # a new study has a new folder
        sweep([str(path), f"study={folder}", *long], CONFIG)


def wait_for(there, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def workers_of(folder: Path) -> list[str]:
    """The processes that print into a study's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "fd" / "1").readlink().is_relative_to(folder):
                found.append(process.name)
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "optim=adam,sgdd"], ["optim=sgdd", "did you mean 'sgd'"]),
        (["-m", "optim.learning_rate=interval(1e-4,1)"], ["n_trials="]),
        (["-m", "optim=adam,sgd", "n_trails=3"], ["did you mean 'n_trials'"]),
        (["lanes=4"], ["lanes: now side_by_side, a key of searches; say -m"]),
        (["n_trials=4"], ["n_trials: a key of searches; say -m"]),
        (["n_trails=4"], ["did you mean 'n_trials'"]),
        (["-m", "optim=sgd", "optim.momentum=0.8,0.9"], ["only optim=momentum, muon and"]),
        (["-m", "seed=1,2", "points=nowhere.csv"], ["nowhere.csv: no such file", "directory"]),
        (["-m", "optim=adam,sgd", "mode=evaluate"], ["mode=evaluate", "a new training"]),
        (["-m", "optim.learning_rate=tag(log,interval(0,1))", "n_trials=3"], ["above 0"]),
        (["-m", "model=mlp,conv_autoencoder", "data=digits_rows"], ["2-D convolutions"]),
        (["-m", "seed=1,2", "schedule=warmup_cosine", "schedule.warmup=99"], ["20 epochs"]),
        (["-m", "model=cnn", "model.layers=[flatten],[{dense:classes}]"], ["model.layers"]),
        (["-m", "data.batch_size=8,16", "freeze=[outptu]"], ["no weight is called outptu"]),
    ],
)
def test_bad_searches_are_named_in_plain_lines(run_cli, tmp_path, arguments, words, planned_here):
    code, error = run_cli(*arguments, f"study={tmp_path / 'study'}")
    assert code == 2
    for word in words:
        assert word in error
    assert not (tmp_path / "study").exists()
