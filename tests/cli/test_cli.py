"""The command line: what a user can get wrong ends in one or two plain lines and exit code 2."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import machine
from experiments.cli.main import command_line
from experiments.cli.search_keys import SEARCH_KEYS, search_help
from experiments.core.config import leaves
from experiments.errors import ALIASES, suggest
from support import ROOT, composed


def leaf_paths(*overrides: str) -> set[str]:
    """The keys of a config, without the indices of lists."""
    return {re.sub(r"\.\d+$", "", path) for path, _ in leaves(composed(*overrides))}


FAST = ["debug=fast", "model.hidden=[8]"]


@pytest.mark.slow
def test_a_fast_run_exits_with_0(run_cli, tmp_path):
    code, _ = run_cli(*FAST)
    assert code == 0
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / ".hydra" / "config.yaml").exists()
    assert (
        gc.get_threshold() == machine.GARBAGE_USUALLY
    )  # seldom collected while starting, then as usual


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optm=adam"], ["optm", "did you mean 'optim'"]),
        (["model=vgg61"], ["model=vgg61", "'vgg16'", "lenet5"]),
        (["model=3"], ["model=3: there is no such choice", "lenet5"]),
        (["=3"], ["=3: the key before = is missing"]),
        (["optim.learning_rte=1"], ["optim.learning_rte", "'optim.learning_rate'"]),
        (["data.batch_size=abc"], ["data.batch_size=abc", "a whole number"]),
        (["data.batch_size=0"], ["data.batch_size", "at least 1"]),
        (["optim.learning_rate=-1"], ["optim.learning_rate=-1", "at least 0"]),
        (["optim.learning_rate=nan"], ["optim.learning_rate=nan", "at least 0"]),
        (["optim.b1=high"], ["optim.b1=high", "a number"]),
        (["optim.rule=optax.scale_by_adma"], ["scale_by_adma", "scale_by_adam"]),
        (["model.hidden=[8,x]"], ["model.hidden", "whole number"]),
        (["model.activation=rleu"], ["model.activation=rleu", "relu"]),
        (["trainer.precision=fp8"], ["trainer.precision=fp8", "fp32, bf16"]),
        (["objective.head=sigmoid"], ["contains the softmax", "objective.head=null"]),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["data.batch_size=5000"], ["data.batch_size=5000", "1293 training examples"]),
        (["trainer.devices=64"], ["trainer.devices=64", "this machine has"]),
        (["optim.lr=0.1"], ["optim.lr: ", "did you mean 'optim.learning_rate'?"]),
        (["optim=sgd", "optim.momentum=0.9"], ["only optim=momentum, muon and nesterov have this"]),
        (["+foo=1"], ["+foo=1: nothing reads foo"]),
        (["trainer.monitor=f1"], ["trainer.monitor=f1", "accuracy"]),
        (["logger=[csv,wadb]"], ["logger=wadb", "did you mean 'wandb'?", "can be csv, mlflow"]),
        (["trainer.steps=0", "model.pretrained=w"], ["mode=evaluate model.pretrained=w "]),
        (["mode=evaluate"], ["mode=evaluate", "checkpoint=<run folder>"]),
        (["mode=evalute"], ["mode=evalute", "evaluate"]),
        (["mode=evaluate", "checkpoint=nowhere"], ["nowhere does not exist"]),
        (["resume=nowhere"], ["nowhere does not exist"]),
        (["data=mnist", "data.dir={tmp}/empty"], ["mnist", "empty", "make data DATA=mnist"]),
        (["data=tfds", "data.name=mnits", "data.dir={tmp}"], ["mnits"]),
        (["model.hidden=[8"], ["model.hidden=[8:", "cannot be read"]),
        (["optim=adam,sgd"], ["optim=adam,sgd: ", "say -m"]),
        (["optim.b1=interval(0.5,0.9)"], ["optim.b1=interval(0.5,0.9): ", "say -m"]),
        (["trainer.steps_per_epoch=2", "optim.accumulate=3"], ["optim.accumulate=3", "2 steps"]),
        (
            ["trainer.epochs=2", "schedule=warmup_cosine", "schedule.warmup=3"],
            ["schedule.warmup=3", "2 epochs"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_bad_input_is_named_in_plain_lines(run_cli, tmp_path, arguments, words):
    given = [a.format(tmp=tmp_path) for a in arguments]
    code, error = run_cli(*FAST[: 0 if "hidden" in str(given) else 2], *given)
    assert code == 2
    for word in words:
        assert word in error
    assert "Traceback" not in error
    assert len(error[error.index("error:") :].splitlines()) <= 2


def test_what_other_programs_call_it_is_understood():
    keys = sorted(
        {*leaf_paths("model=lenet5", "schedule=warmup_cosine"), "debug", "optim", "schedule"}
    )
    for given, meant in {
        "optim.lr": "'optim.learning_rate'",
        "lr": "'optim.learning_rate'",
        "ckpt_path": "'checkpoint' or 'resume'",
        "trainer.max_epochs": "'trainer.epochs'",
        "epochs": "'trainer.epochs'",
        "optimizer": "'optim'",
        "scheduler": "'schedule'",
        "batch_size": "'data.batch_size'",
        "weight_decay": "'optim.weight_decay'",
        "fast_dev_run": "'debug=fast'",
    }.items():
        assert suggest(given, keys) == f"; did you mean {meant}?"
    assert suggest("metrc", ["metric", "metric"]) == "; did you mean 'metric'?"


def test_every_name_of_the_table_is_a_key_or_a_choice():
    keys = {*leaf_paths("schedule=warmup_cosine", "optim=adamw"), *SEARCH_KEYS, "hydra.run.dir"}
    keys |= {key.partition(".")[0] for key in keys} | {"debug"}
    assert {key.partition("=")[0] for key in ALIASES} <= keys


def test_an_unwritable_folder_is_named(run_cli, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, error = run_cli(*FAST, folder=tmp_path / "file" / "run")
    assert code == 2
    assert str(tmp_path / "file") in error


def test_a_user_without_a_home_or_an_entry_is_given_one(monkeypatch, tmp_path):
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")  # restored afterwards
    monkeypatch.delenv("HOME")
    homes: list[Path] = []
    for _ in range(2):
        assert command_line(lambda: homes.append(Path.home()), hydra=False) == 0
        assert list(tmp_path.iterdir()) == [*{*homes}]  # the same for all: none stays behind each
        monkeypatch.delenv("HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "none"))  # one that is not there
    for variable in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, "")  # restored afterwards
        monkeypatch.delenv(variable)
    assert command_line(lambda: None, hydra=False) == 0
    assert os.environ["XDG_CACHE_HOME"] == os.environ["MPLCONFIGDIR"] == str(homes[0])


@pytest.mark.parametrize("key", ["hydra.run.dir", "resume", "data.dir"])
def test_a_path_that_is_too_long_is_named(run_cli, key):
    code, error = run_cli("data=mnist", f"{key}=/tmp/{'n' * 300}", folders=False)
    assert code == 2
    assert f"error: File name too long: /tmp/{'n' * 300}" in error.splitlines()[-1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(run_cli, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    code, error = run_cli(*FAST, folder=folder)
    assert code == 2
    assert "metrics.jsonl" in error
    assert "no space left" in error


def test_missing_and_truncated_checkpoints_are_named(run_cli, tmp_path):
    folder = tmp_path / "trained"
    options = ["trainer.epochs=1", "trainer.figures=false", "logger=none", "model.hidden=[8]"]
    assert run_cli(*options, folder=folder)[0] == 0
    evaluate = ["mode=evaluate", f"checkpoint={folder}"]
    assert run_cli(*evaluate)[0] == 0
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    code, error = run_cli(*evaluate)
    assert code == 2
    assert "no checkpoint in" in error
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    code, error = run_cli(*evaluate)
    assert code == 2
    assert "there is no checkpoint in" in error


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGHUP", marks=pytest.mark.slow),
        pytest.param("SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_the_training_ends_it_like_ctrl_c(tmp_path, data_home, name):
    folder = tmp_path / "run"
    command = [sys.executable, "run.py", "logger=none", *data_home, f"hydra.run.dir={folder}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(folder)
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error.strip()) == (130, "interrupted")


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("name", [pytest.param("SIGTERM", marks=pytest.mark.slow), "SIGHUP"])
def test_a_terminated_run_exits_with_75_and_can_be_resumed(tmp_path, data_home, name):
    folder = tmp_path / "run"
    command = [sys.executable, "run.py", "logger=none", "trainer.figures=false"]
    start = [*command, *data_home, f"hydra.run.dir={folder}", "trainer.epochs=100000"]
    with subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        metrics = folder / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"stopped by {name}" in error
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    resume = [*command[:2], f"resume={folder}", "trainer.max_time=0.5"]
    done = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = json.loads((folder / "summary.json").read_text())
    assert resumed["status"] == "stopped_early"
    assert resumed["step"] > summary["step"]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps)
    assert len(set(steps)) >= len(steps) - 1  # the test has the step of the last line


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_made_ends_the_run_within_seconds(tmp_path, data_home):
    folder = tmp_path / "run"
    command = [sys.executable, "run.py", "logger=none", "trainer.figures=false", *data_home]
    command += [f"hydra.run.dir={folder}", "trainer.epochs=100000", "trainer.checkpoint_every=0.5"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(folder / "checkpoints")
        time.sleep(1)
        (folder / "checkpoints").rename(folder / "before")
        (folder / "checkpoints").write_text("in the way")
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot save a checkpoint in" in error


@pytest.mark.parametrize(
    ("extra", "streams"),
    [
        pytest.param([], "| head -1", id="a run, left"),
        pytest.param([], ">&- 2>&-", marks=pytest.mark.slow, id="a run, closed"),
        pytest.param(
            ["-m", "seed=range(2)"], "| head -1", marks=pytest.mark.slow, id="a search, left"
        ),
        pytest.param(
            ["-m", "seed=range(2)"], ">&- 2>&-", marks=pytest.mark.slow, id="a search, closed"
        ),
    ],
)
def test_nothing_ends_where_nobody_reads_and_no_log_can_be_written(
    tmp_path, data_home, extra, streams
):
    place = [f"study={tmp_path}"] if extra else [f"hydra.run.dir={tmp_path}"]
    run = tmp_path / "trials" / "0" if extra else tmp_path
    if not extra:  # a study is not begun where there are trials
        (run / "run.log").mkdir()  # as unwritable as on a disk without inodes
    command = [sys.executable, "run.py", *data_home, *FAST, *place, *extra]
    shell = ["bash", "-c", f'set -o pipefail; "$@" {streams}', "bash", *command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_two_processes_cannot_train_in_one_folder(run_cli, tmp_path):
    from experiments.training.run_folder import exclusive

    folder = tmp_path / "taken"
    folder.mkdir()
    with exclusive(folder):
        code, error = run_cli(*FAST, folder=folder)
    assert code == 2
    assert "another process is training in" in error


def test_help_starts_without_jax():
    program = "import sys; sys.argv = ['run.py', '--help']; import runpy\n"
    program += "try: runpy.run_path('run.py', run_name='__main__')\n"
    program += "except SystemExit: pass\n"
    program += "assert not {'jax', 'flax', 'wandb', 'optuna', 'pydantic'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warmup_cosine" in done.stdout
    assert search_help() in done.stdout
    # every key with what its file says of it, those of files that others build on too
    for line in (r"    epochs: 20 +passes over", r"        flip: false +mirror", r"    b1: 0\.9"):
        assert re.search(line, done.stdout), line
    assert not re.search(r"\b_(shared|images|augment)\b", done.stdout)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(tmp_path, data_home):
    summaries = []
    for count in (1, 8):
        folder = tmp_path / str(count)
        flags = f"--xla_force_host_platform_device_count={count}"
        command = [sys.executable, "run.py", *data_home, f"hydra.run.dir={folder}", "logger=none"]
        command += ["trainer.epochs=2", "trainer.figures=false", "trainer.checkpoints=false"]
        command += ["model=vgg16", "model.batch_norm=true", "model.stages=[1,1]"]
        command += ["model.widths=[4,8]", "data.limit=128", f"trainer.devices={count}"]
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        summaries.append([json.loads(line) for line in lines])
    for one, eight in zip(*summaries, strict=True):
        for key in ("train/loss", "val/loss", "test/loss"):
            if key in one:
                assert eight[key] == pytest.approx(one[key], rel=2e-3)
