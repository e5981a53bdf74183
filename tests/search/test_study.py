"""A study's storage, and studies of older versions."""

import threading

import optuna
import yaml

from experiments.search.study import Study, open_storage
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
