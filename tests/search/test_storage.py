"""A study's storage: its journal, and the password of a database."""

import threading

import optuna
import pytest
import yaml

from experiments.errors import UserError, masked
from experiments.search.shared import storage as storages
from experiments.search.shared.storage import ADDRESS, open_storage
from experiments.search.study import Study
from support import ROOT

CONFIG = ROOT / "conf"
URL, SHOWN = "postgresql://me:s3cret@host/db", "postgresql://me:***@host/db"


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


@pytest.fixture
def database(monkeypatch, tmp_path) -> list[str]:
    """A database behind every URL; the list of the URLs that it was opened by."""
    opened: list[str] = []
    connect = storages.get_storage

    def get_storage(url: str):
        opened.append(url)
        return connect(f"sqlite:///{tmp_path}/study.db")

    monkeypatch.setattr(storages, "get_storage", get_storage)
    monkeypatch.delenv(ADDRESS, raising=False)
    return opened


def test_a_password_is_kept_where_only_its_owner_reads_it(make_study, database):
    folder = make_study(storage=URL).folder
    assert yaml.safe_load((folder / "study.yaml").read_text())["storage"] == SHOWN
    kept = folder / "storage.url"
    assert kept.stat().st_mode & 0o777 == 0o600
    holders = [p for p in folder.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]
    assert holders == [kept]
    database.clear()
    assert Study(folder, CONFIG).plan.storage == SHOWN
    assert set(database) == {URL}
    kept.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        Study(folder, CONFIG)
    kept.unlink()
    with pytest.raises(UserError, match=f"in {ADDRESS}, or in .*storage.url, a file of mode 0600"):
        Study(folder, CONFIG)


def test_the_environment_names_a_database_and_nothing_of_it_is_written(
    make_study, database, monkeypatch
):
    monkeypatch.setenv(ADDRESS, URL)
    folder = make_study(storage=URL).folder
    assert not (folder / "storage.url").exists()
    Study(folder, CONFIG)
    assert set(database) == {URL}
    monkeypatch.setenv(ADDRESS, URL.replace("host", "elsewhere"))
    with pytest.raises(UserError, match="say the URL with its password"):
        Study(folder, CONFIG)


@pytest.mark.slow
def test_errors_show_no_password(run_cli, tmp_path):
    for url in ("nosuch://me:s3cret@host/db", "postgresql://me:s3cret@x@host/db"):
        code, error = run_cli("-m", "optim=adam,sgd", f"storage={url}", f"study={tmp_path / 's'}")
        assert code == 2
        assert "//me:***@host/db" in error
        assert "s3cret" not in error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no {URL} here", f"no {SHOWN} here"),
        ("'redis://:p/w@d@host'", "'redis://:***@host'"),
        (
            "mysql://host/db?user=me&password=s3cret&ssl=1",
            "mysql://host/db?user=me&password=***&ssl=1",
        ),
        ("see https://host:80/a, mail me@host", "see https://host:80/a, mail me@host"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
    ],
)
def test_only_passwords_are_masked(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown
