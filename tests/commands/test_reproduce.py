"""`mode=reproduce` in a repository of the user's own: by what code it trains, and what it says."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.commands.reproduce import COMPARED, compare
from experiments.machine import command
from experiments.tracking.jsonl import METRICS, SUMMARY, write_json
from experiments.tracking.provenance import BRIEF, FILE, read_starts

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

MODEL = """
from experiments.models.mlp import MLP
class Mine(MLP):
    def __call__(self, x, *, rngs=None):
        return {factor} * super().__call__(x, rngs=rngs)
"""
START = dict.fromkeys(BRIEF, "the same") | {"code": [], "packages": {"jax": "0.10.0"}}


def test_whatever_differs_is_found(tmp_path):
    def run(name: str, losses: list[float], status: str = "finished", **start) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        events = [{"step": 10 * i, "val/loss": loss} for i, loss in enumerate(losses, 1)]
        lines = [json.dumps(e | {"examples_per_second": hash(name)}) for e in events]
        (folder / METRICS).write_text("\n".join(lines).replace("NaN", '"NaN"'))
        write_json(folder / SUMMARY, {"val/loss": losses[-1], "seconds": 1.0, "status": status})
        write_json(folder / FILE, {"starts": [START | start]})
        return folder

    nan = float("nan")
    first, same = run("first", [3.0, 2.0, nan]), run("same", [3.0, 2.0, nan])
    assert compare(first, same, 0.0)["equal"]
    near = run("near", [3.0, 2.002, nan], packages={"jax": "0.10.1"})
    found = compare(first, near, 0.0)
    assert [(d["name"], d["step"], d["here"]) for d in found["differences"]] == [
        ("val/loss", 20, 2.002)
    ]
    assert found["differences"][0]["relative_difference"] == pytest.approx(1e-3, rel=0.01)
    assert found["surroundings"] == {"jax": ["0.10.0", "0.10.1"]}
    assert compare(first, near, 0.01)["equal"]
    short = run("short", [3.0, 2.0])
    assert not compare(first, short, 0.01)["equal"]  # it lacks a step
    cut = run("cut", [3.0, 2.0], status="interrupted")
    assert compare(cut, first, 0.0)["equal"]  # as far as it came
    assert not compare(run("other", [1.0], status="diverged"), run("ended", [1.0]), 0.0)["equal"]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.slow
def test_a_run_is_repeated_by_the_code_that_it_began_with(tmp_path, data_home):
    mine = tmp_path / "mine"
    (mine / "conf" / "model").mkdir(parents=True)
    (mine / "conf" / "model" / "mine.yaml").write_text(
        "defaults: [mlp]\n_target_: mine.Mine\nhidden: [8]\n"
    )
    (mine / ".gitignore").write_text("runs\n__pycache__\n")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [*command("run"), *arguments], cwd=mine, env=environment, capture_output=True, text=True
        )

    def train(name: str, factor: float) -> None:
        (mine / "mine.py").write_text(MODEL.format(factor=factor))
        options = ["model=mine", "debug=fast", "logger=none", *data_home]
        done = run(*options, f"hydra.run.dir=runs/{name}")
        assert done.returncode == 0, done.stderr

    (mine / "mine.py").write_text(MODEL.format(factor=1.0))
    git(mine, "init", "-q")
    git(mine, "add", ".")
    git(mine, "commit", "-qm", "one")
    train("committed", 1.0)
    train("changed", 2.0)
    (mine / "mine.py").write_text(MODEL.format(factor=3.0))

    done = run("mode=reproduce", "checkpoint=runs/committed", "hydra.run.dir=runs/again")
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
    (start,) = read_starts(mine / "runs" / "again")
    assert start["code"][0]["commit"] == git(mine, "rev-parse", "HEAD").strip()

    again = ("mode=reproduce", "checkpoint=runs/changed", "hydra.run.dir=runs/patched")
    done = run(*again)
    assert done.returncode == 2  # a patch is code, and this one is nowhere else
    allowed = done.stderr.strip().rpartition(" ")[2]
    done = run(*again, allowed)
    assert done.returncode == 0, done.stderr

    metrics = mine / "runs" / "committed" / METRICS
    metrics.write_text(metrics.read_text().replace('"train/loss": ', '"train/loss": 1'))
    done = run("mode=reproduce", "checkpoint=runs/committed", "hydra.run.dir=runs/differing")
    assert done.returncode == 1
    assert "differs     train/loss from step" in done.stdout
    assert not json.loads((mine / "runs/differing" / COMPARED).read_text())["equal"]

    known = mine / "runs" / "committed" / FILE
    known.write_text(known.read_text().replace(start["code"][0]["commit"], "0" * 40))
    done = run("mode=reproduce", "checkpoint=runs/committed")
    assert done.returncode == 2
    assert "no repository here has the commit 00000" in done.stderr
    known.unlink()
    done = run("mode=reproduce", "checkpoint=runs/committed")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert len(git(mine, "worktree", "list").splitlines()) == 1
