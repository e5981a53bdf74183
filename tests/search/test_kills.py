"""Workers that are killed at random: no trial is lost, and none is run twice."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from experiments.search.shared.claims import DIED, Claims
from support import ROOT


@pytest.mark.parametrize(
    ("trials", "kills", "side_by_side"),
    [
        (3, 1, 1),
        pytest.param(40, 15, 1, marks=pytest.mark.slow),
        pytest.param(24, 4, 6, marks=pytest.mark.slow),
    ],
)
def test_no_trial_is_lost_or_run_twice_when_workers_are_killed(
    make_study, trials, kills, side_by_side
):
    epochs = 20
    study = make_study(
        n_trials=trials,
        attempts=50,
        side_by_side=side_by_side,
        overrides=[f"trainer.epochs={epochs}", "data.batch_size=1", "trainer.checkpoint_every=0.2"],
    )
    command = [sys.executable, str(ROOT / "sweep.py"), f"resume={study.folder}", "workers=2"]
    printed = study.folder / "printed"
    with printed.open("w") as file:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=file)
    chance, killed = random.Random(0), 0
    try:
        while launcher.poll() is None:
            time.sleep(chance.uniform(0.3, 1.5))
            if killed < kills and (pid := someone_at_work(study.claims, chance)):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    finally:
        launcher.kill()
    assert launcher.returncode == 0
    assert killed == kills
    assert printed.read_text().count("was killed by signal 9 (Killed) during trial") == kills
    with (study.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(trials))
    assert {row["state"] for row in rows} == {"finished"}
    died = 0
    for number in range(trials):
        lines = (study.folder_of(number) / "metrics.jsonl").read_text().splitlines()
        validated = [e["epoch"] for e in map(json.loads, lines) if "val/accuracy" in e]
        assert validated == list(range(1, epochs + 1))  # each epoch once, whoever trained it
        died += study.claims.deaths(str(number))
    assert (
        died <= kills * side_by_side
    )  # an attempt begins only where the one before ended with its worker


def someone_at_work(claims: Claims, chance: random.Random) -> int | None:
    """The process of a random claim, if it lives."""
    held = [claim for claim in claims.latest().values() if claim.touched > DIED]
    if not held:
        return None
    newest = sorted(held, key=lambda claim: claim.touched)[-2:]
    try:
        pid = json.loads(chance.choice(newest).path.read_text())["pid"]
        os.kill(pid, 0)
    except (ProcessLookupError, ValueError):
        return None
    return pid
