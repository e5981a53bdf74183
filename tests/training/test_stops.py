"""A run that is asked to stop at an awkward moment goes on later as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from experiments.training.evaluation import Evaluator
from experiments.training.saving.checkpoints import Checkpoints
from experiments.training.step import Compiled
from support import ROOT, lines_of, weights_of

OPTIONS = [
    *("model.hidden=[16]", "model.dropout=0.2", "logger=none", "trainer.figures=false"),
    *("trainer.epochs=3", "trainer.log_every=8", "trainer.max_steps_per_dispatch=4"),
]


def status_of(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["status"]


def assert_same(folder: Path, other: Path) -> None:
    assert lines_of(folder) == lines_of(other)
    for mine, its in zip(weights_of(folder), weights_of(other), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.fixture
def whole(run_cli, tmp_path):
    """The folder of a run that was left alone."""
    assert run_cli(*OPTIONS, folder=tmp_path / "whole")[0] == 0
    return tmp_path / "whole"


@contextmanager
def signals_within(monkeypatch, owner, name, *numbers):
    """The first time that `owner.name` is called, this process gets these signals before it."""
    original, left = getattr(owner, name), [list(numbers)]

    def interrupted(*args, **kwargs):
        for number in left.pop() if left else ():
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        yield
    assert not left, f"{name} was never called"


@pytest.mark.parametrize(
    ("owner", "name", "options"),
    [
        pytest.param(Compiled, "prepare", [], id="compiling"),
        pytest.param(Evaluator, "measure", [], marks=pytest.mark.slow, id="evaluating"),
        pytest.param(
            *(Checkpoints, "save", ["trainer.checkpoint_every=0"]),
            marks=pytest.mark.slow,
            id="saving",
        ),
    ],
)
def test_stopped_while(run_cli, monkeypatch, tmp_path, whole, owner, name, options):
    folder = tmp_path / "cut"
    with signals_within(monkeypatch, owner, name, signal.SIGTERM):
        code, error = run_cli(*OPTIONS, *options, folder=folder)
    assert code == 75, error
    assert "stopped by SIGTERM" in error
    assert status_of(folder) == "interrupted"
    assert run_cli(f"resume={folder}", folder=folder)[0] == 0
    assert_same(folder, whole)


def test_stopped_while_testing_there_is_nothing_left_to_resume(run_cli, monkeypatch, tmp_path):
    with signals_within(monkeypatch, Evaluator, "predict", signal.SIGUSR1):
        code, _ = run_cli(*OPTIONS, folder=tmp_path / "late")
    assert code == 0
    assert status_of(tmp_path / "late") == "finished"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(run_cli, monkeypatch, tmp_path, whole):
    folder = tmp_path / "cut"
    options = [*OPTIONS, "trainer.checkpoint_every=0"]
    with signals_within(monkeypatch, Evaluator, "measure", signal.SIGINT, signal.SIGINT):
        code, error = run_cli(*options, folder=folder)
    assert code == 130
    assert "Traceback" not in error
    assert status_of(folder) == "interrupted"
    assert run_cli(f"resume={folder}", folder=folder)[0] == 0
    assert_same(folder, whole)


@pytest.mark.slow
def test_resumed_on_fewer_devices(tmp_path, data_home, whole):
    def run(*arguments: str, devices: int) -> None:
        environment = dict(os.environ, JAX_PLATFORMS="cpu")
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "run.py", *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)

    folder = tmp_path / "moved"
    run(*data_home, *OPTIONS, f"hydra.run.dir={folder}", "trainer.epochs=1", devices=8)
    run(f"resume={folder}", "trainer.epochs=3", devices=2)
    for mine, other in zip(lines_of(folder), lines_of(whole), strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_costs_no_checkpoint(
    run_cli, monkeypatch, tmp_path, small_disk, whole, foreseen
):
    if not foreseen:
        monkeypatch.setattr(Checkpoints, "_check_room", lambda *_: None)
    folder, filler = small_disk / "run", small_disk / "filler"
    assert run_cli(*OPTIONS, "trainer.epochs=2", folder=folder)[0] == 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    filler.write_bytes(b"\0" * (free - 20_000))  # enough for the log, not for a checkpoint
    again = [f"resume={folder}", "trainer.epochs=3"]
    code, error = run_cli(*again, folder=folder)
    assert code == 2
    # where it is not foreseen, half a checkpoint may leave no room for the log either
    assert re.search("cannot (save a checkpoint|write .*/metrics.jsonl)", error)
    assert "no space left on device" in error.lower()
    assert "Traceback" not in error
    code, error = run_cli("mode=evaluate", f"checkpoint={folder}", folder=tmp_path / "evaluated")
    assert code == 0, error
    filler.unlink()
    assert run_cli(*again, folder=folder)[0] == 0
    assert_same(folder, whole)
