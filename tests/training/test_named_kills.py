"""A run that is killed at every moment that could matter ends like one that never was."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import ROOT, lines_of, timeless, weights_of

CHECKPOINT = r"checkpoints/\d+\.orbax-checkpoint-tmp"
MOMENTS = [  # each later than the one before in any run
    r"write metrics\.jsonl",
    rf"mkdir {CHECKPOINT}",
    rf"rename {CHECKPOINT}/state\.orbax-checkpoint-tmp",
    rf"rename {CHECKPOINT}",
    r"remove checkpoints/\d+",
    "test",
    r"write figures/\.\w+\.learning_curves\.png",
    r"rename figures/\.\w+\.learning_curves\.png",
    r"write \.\w+\.summary\.json",
    r"rename \.\w+\.summary\.json",
]
PICTURES = [r"write figures/\.\w+\.samples_\d+\.png", r"rename figures/\.\w+\.samples_\d+\.png"]
FAMILIES = {
    "mlp": ["model=mlp", "model.hidden=[16]", "model.dropout=0.3", "optim.ema_decay=0.9"],
    "lenet5": ["model=lenet5", "data.augment.crop_padding=1", "optim.accumulate=2"],
    "resnet": ["model=resnet20"],
    "densenet": ["model=densenet40_12", "model.blocks=[1,1,1]", "model.growth_rate=4"],
    "lstm": ["model=lstm", "model.hidden=16", "data=digits_rows"],
    "autoencoder": ["model=denoising_autoencoder", "model.hidden=[16]"],
    "vae": ["model=vae", "model.hidden=[16]"],
    "gan": ["model=gan", "model.hidden=[16]", "model.latents=8"],
    "periods": [
        *("model=mlp", "model.hidden=[16]", "trainer.eval_every=5", "trainer.keep_best=2"),
        *("schedule=reduce_on_plateau", "schedule.patience=0", "schedule.threshold=0.2"),
    ],
    "streamed": ["model=mlp", "model.hidden=[16]", "data.stream=true", "data.workers=0"],
}
SHORT = ["data.limit=192", "data.batch_size=32", "trainer.epochs=4", "trainer.eval_batches=2"]
SHORT += ["trainer.checkpoint_every=0", "trainer.max_steps_per_dispatch=2", "trainer.log_every=2"]
SHORT += ["trainer.figures=true", "logger=none"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_killed_at_every_moment_ends_like_an_undisturbed_one(
    run_cli, tmp_path, data_home, family
):
    options = [*FAMILIES[family], *SHORT]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, error = run_cli(*options, folder=whole)
    assert code == 0, error
    moments = list(MOMENTS)
    if family in ("vae", "gan"):
        moments[5:5] = PICTURES
    command = [*data_home, *options, f"hydra.run.dir={killed}"]
    for moment in moments:
        assert run(moment, killed, command) == -signal.SIGKILL, moment
        command = [f"resume={killed}"]
    assert run("never", killed, command) == 0
    assert lines_of(killed) == lines_of(whole)
    assert summary(killed) == summary(whole)
    for mine, other in zip(weights_of(killed), weights_of(whole), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert pictures(killed) == pictures(whole)
    assert not [path for path in killed.rglob(".*") if path.is_file() and path.name != ".lock"]


def run(moment: str, folder: Path, arguments: list[str]) -> int:
    """Runs until the moment; the exit code."""
    command = [sys.executable, str(Path(__file__).with_name("kill_at.py")), moment, str(folder)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGKILL, 0), f"{moment}\n{done.stdout}{done.stderr}"
    return done.returncode


def summary(folder: Path) -> dict:
    found = json.loads((folder / "summary.json").read_text())
    found["best"] = timeless([found["best"]])
    return timeless([found])[0]


def pictures(folder: Path) -> dict[str, tuple]:
    """The figures of a run by name, all of which can be read, with their sizes."""
    found = {}
    for path in sorted((folder / "figures").rglob("*.*")):
        with Image.open(path) as image:
            image.load()
            found[path.name] = image.size
    return found
