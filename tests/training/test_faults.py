"""A run that is killed again and again ends like one that never was."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.training.run_folder import saved_steps
from support import ROOT, lines_of, weights_of

CLASSIFIER = [
    "model=vgg16",
    "model.batch_norm=true",
    "model.stages=[1]",
    "model.widths=[8]",
    "model.small_hidden=[16]",
    "model.dropout=0.3",
]
STREAMED = ["data.stream=true", "data.workers=0", "model.hidden=[16]", "model.dropout=0.3"]

GAN = ["model=gan", "model.hidden=[16]", "model.latents=8"]  # two optimizers


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "run.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish_despite(kills: int, folder: Path, arguments: list[str]) -> list[int]:
    """Starts a run, ends it at random moments, resumes it until it is done; the exit codes."""
    chance = random.Random(0)
    codes: list[int] = []
    arguments = [*arguments, f"hydra.run.dir={folder}"]
    for _ in range(kills):
        before = size(folder)
        process = start(*arguments)
        deadline = time.monotonic() + 90
        # a moment after the first new line; before the first checkpoint there is nothing to resume
        while process.poll() is None and time.monotonic() < deadline:
            if size(folder) > before and saved_steps(folder):
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1.0))
        others = [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1]
        process.send_signal(chance.choice(others) if codes else signal.SIGKILL)
        _, error = process.communicate(timeout=90)
        codes.append(process.returncode)
        assert process.returncode in (-signal.SIGKILL, 75, 0), error
        arguments = [f"resume={folder}"]
        if process.returncode == 0:
            return codes
    process = start(*arguments)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return [*codes, 0]


def size(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize(
    ("kind", "kills", "epochs"),
    [
        pytest.param(CLASSIFIER, 1, 10, marks=pytest.mark.core),
        pytest.param(CLASSIFIER, 30, 400, marks=pytest.mark.slow),
        pytest.param(STREAMED, 10, 150, marks=pytest.mark.slow),
        pytest.param(GAN, 5, 1000, marks=pytest.mark.slow),
    ],
    ids=["once", "classifier", "streamed", "gan"],
)
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_one(
    run_cli, tmp_path, data_home, kind, kills, epochs
):
    options = [*kind, "logger=none", "trainer.figures=false", "data.limit=512"]
    options += ["trainer.checkpoint_every=0.3", "trainer.log_every=3", f"trainer.epochs={epochs}"]
    options += ["trainer.max_steps_per_dispatch=2", "trainer.eval_batches=1"]
    code, error = run_cli(*options, folder=tmp_path / "whole")
    assert code == 0, error
    codes = finish_despite(kills, tmp_path / "killed", [*data_home, *options])
    assert len(codes) > 1, "the run was over before it could be killed"
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    for mine, other in zip(
        weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    assert not list((tmp_path / "killed" / "checkpoints").glob("*tmp*"))
    assert os.path.exists(tmp_path / "killed" / "summary.json")
