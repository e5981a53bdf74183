"""Folders with any name, as users type them, and in commands that are printed to copy."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.startup import SWEEPER, for_hydra
from support import NAME, ROOT

QUICK = ["trainer.figures=false", "logger=none", "model.hidden=[8]", "data.limit=128"]


def bash(command: str) -> str:
    """What a command prints that is pasted into a terminal."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("checkpoint=a/b", "checkpoint=a/b"),
        ("checkpoint=7", "checkpoint='7'"),
        ("checkpoint=a b", "checkpoint='a b'"),
        ("checkpoint='a b'", "checkpoint='a b'"),
        ("checkpoint=it's", r"checkpoint='it\'s'"),
        ("hydra.run.dir=runs/${now:%Y}", "hydra.run.dir=runs/${now:%Y}"),
        ("optim.rule=a b", "optim.rule=a b"),
    ],
)
def test_folders_are_quoted_for_hydra(typed, wanted):
    assert for_hydra([typed, "hydra.run.dir=y"])[0] == wanted  # else the run would have to be there
    search = for_hydra(["-m", typed.replace("checkpoint", "study")])
    assert search == ["-m", wanted.replace("checkpoint", f"{SWEEPER}study")]


@pytest.mark.slow
def test_a_run_has_a_folder_of_any_name(run_cli, tmp_path):
    folder = tmp_path / NAME
    assert run_cli(*QUICK, "trainer.epochs=1", folder=folder)[0] == 0
    for mode in ("evaluate", "predict"):
        code, error = run_cli(f"mode={mode}", f"checkpoint={folder}", folder=folder)
        assert code == 0, error
    (saved,) = (folder / "checkpoints").iterdir()
    assert run_cli("mode=evaluate", f"checkpoint={saved}")[0] == 0
    first = json.loads((folder / "summary.json").read_text())["step"]
    code, error = run_cli(*QUICK, folder=folder)
    assert code == 2
    (resume,) = re.findall(r"go on with it by (.*), choose another folder", error)
    bash(f"python run.py {resume} trainer.epochs=2")
    assert json.loads((folder / "summary.json").read_text())["step"] == 2 * first
    options = ["trainer.epochs=1", f"model.pretrained={folder}"]
    assert run_cli(*QUICK, *options, folder=tmp_path / "second")[0] == 0


@pytest.mark.slow
def test_a_study_has_a_folder_of_any_name(tmp_path, data_home):
    folder = tmp_path / NAME
    options = [*QUICK, *data_home, "trainer.epochs=1", "seed=1,2", f"study={folder}"]
    printed = bash(shlex.join(["python", "run.py", *options]))
    (report,) = re.findall(r"python report.py .*", printed)
    bash(report)
    assert (folder / "report.html").exists()
