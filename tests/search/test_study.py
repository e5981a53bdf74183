"""A study's storage, and studies of older versions."""

import io
import os
import threading

import optuna
import pytest
import yaml
from rich.console import Console

from experiments.errors import UserError
from experiments.search.plan import Plan
from experiments.search.results import Overviews, screen
from experiments.search.study import Study, create_study, open_storage
from support import ROOT


def test_a_line_that_a_killed_writer_left_torn_is_removed(tmp_path):
    storage, _ = open_storage(tmp_path, "journal.log")
    study = optuna.create_study(storage=storage, study_name="torn")
    study.enqueue_trial({})
    journal = tmp_path / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"dead",')
    study.enqueue_trial({})
    storage, _ = open_storage(tmp_path, "journal.log")
    again = optuna.load_study(storage=storage, study_name="torn")
    assert len(again.trials) == 2


def test_trials_without_their_study_are_not_those_of_a_new_one(tmp_path):
    (tmp_path / "trials" / "0").mkdir(parents=True)
    plan = Plan("new", {}, [], "val/loss", "minimize", 1)
    with pytest.raises(UserError, match=r"holds trials without study\.yaml"):
        create_study(plan, tmp_path, ROOT / "conf")


def test_what_is_recorded_at_once_waits_for_the_disk_once_and_keeps_others_out(
    tmp_path, monkeypatch
):
    (storage, at_once), waits = open_storage(tmp_path, "journal.log"), []
    study = optuna.create_study(storage=storage, study_name="batch")
    monkeypatch.setattr("os.fsync", waits.append)
    other = threading.Thread(
        target=lambda: optuna.load_study(
            storage=open_storage(tmp_path, "journal.log")[0], study_name="batch"
        ).enqueue_trial({"other": 1})
    )
    with at_once():
        study.enqueue_trial({"first": 1})
        other.start()
        other.join(0.3)
        study.enqueue_trial({"second": 1})
        assert len(study.trials) == 2  # its own entries are seen, the other's are not there yet
    assert len(waits) == 1
    other.join()
    assert len(waits) == 2
    assert len(study.trials) == 3


def test_a_study_of_before_its_key_was_renamed_can_be_resumed(make_study):
    study = make_study(side_by_side=3)
    path = study.folder / "study.yaml"
    fields = yaml.safe_load(path.read_text())
    fields["lanes"] = fields.pop("side_by_side")
    path.write_text(yaml.safe_dump(fields))
    assert Study(study.folder, ROOT / "conf").plan == study.plan


def test_the_screen_has_a_row_per_worker_that_lives(make_study):
    study = make_study()
    now = {"step": 40, "total_steps": 100, "epoch": 2.0, "trials": 128, "diverged": 3}
    now |= {"examples_per_second": 1e5, "val/accuracy": 0.9123}
    for study.worker in ("here", "dead"):
        Overviews(study).write(now)
    (study.folder / "workers" / "torn.json").write_text("{")
    os.utime(study.folder / "workers" / "dead.json", (0, 0))
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(study))
    shown = console.file.getvalue()
    assert "here" in shown
    assert "dead" not in shown
    for part in ("128", "40/100", "best val/accuracy 0.9123", "3", "100,000"):
        assert part in shown
