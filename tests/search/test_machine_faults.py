"""Faults of the machine cost a study no trial, and trials that failed can be run again."""

import json
import resource
import sys

import pytest

from experiments.errors import UserError
from experiments.search import local, worker
from experiments.search.actions import launch, resume
from experiments.search.study import state_of
from experiments.search.worker import work
from support import ROOT

CONFIG = ROOT / "conf"


@pytest.fixture
def small_files():
    """A limit on the size of files, as a full disk or a quota would set: 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_disk_that_takes_no_more_costs_no_trial(make_study, small_files, own_cache, side_by_side):
    own = ["model.hidden=[128]", f"trainer.compilation_cache={own_cache}"]
    study = make_study(n_trials=2, side_by_side=side_by_side, overrides=own)
    with pytest.raises(UserError, match="File too large; its trials wait"):
        work(study.folder, CONFIG)
    assert [state_of(trial) for trial in study.trials()] == ["waiting"] * 2
    assert study.claims.deaths("0") == 0
    small_files()
    work(study.folder, CONFIG)  # at once: what it had claimed is free
    assert [state_of(trial) for trial in study.trials()] == ["finished"] * 2


def test_failed_trials_run_again_in_their_places(make_study, monkeypatch, capsys):
    study = make_study(n_trials=4, method="narrow", rounds=2)
    fit, calls = worker.fit, []

    def fails_first(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("the room was too warm")
        return fit(*arguments, **options)

    monkeypatch.setattr(worker, "fit", fails_first)
    work(study.folder, CONFIG)
    before = [trial.params for trial in study.trials()]
    assert [state_of(trial) for trial in study.trials()] == ["failed", *["finished"] * 3]
    with pytest.raises(UserError, match="retry=all: must be failed"):
        resume(study.folder, CONFIG, {"retry": "all"})
    assert study.retry() == 1
    work(study.folder, CONFIG)
    assert [trial.params for trial in study.trials()] == before
    assert [trial.number for trial in study.trials()] == [4, 1, 2, 3]
    assert study.complete
    assert json.loads((study.folder_of(4) / "summary.json").read_text())["status"] == "finished"
    assert study.retry() == 0


@pytest.mark.parametrize("lives", [0, 1])
def test_workers_killed_before_they_claim_anything_are_replaced(
    make_study, tmp_path, capsys, lives
):
    """As often as a trial may lose its worker; after that the message says what happened."""
    program = f"""
import os, pathlib, runpy, signal, sys
deaths = pathlib.Path({str(tmp_path / "deaths")!r})
with deaths.open("a") as file:
    file.write("x")
if not {lives} or deaths.stat().st_size < 2:
    os.kill(os.getpid(), signal.SIGKILL)
runpy.run_path({str(ROOT / "sweep.py")!r}, run_name="__main__")"""
    study = make_study(n_trials=1, attempts=2)
    workers = local.Workers(1, [sys.executable, "-c", program])
    if lives:
        launch(study, {}, workers)
    else:
        with pytest.raises(UserError, match="before the study did: killed by signal 9"):
            launch(study, {}, workers)
    assert (tmp_path / "deaths").stat().st_size == 2
    assert "was killed by signal 9 (Killed) before it began a trial" in capsys.readouterr().out
    assert study.complete == bool(lives)
