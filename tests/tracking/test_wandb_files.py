"""What W&B gets of runs that are killed and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.tracking import wandb
from experiments.tracking.jsonl import METRICS, JsonLines
from experiments.tracking.tracker import Trackers
from experiments.tracking.wandb import STATE, Wandb
from experiments.tracking.wandb_files import ClientLog, mend_offline_runs
from wandb_server import reader
from wandb_server.trainings import recorded


def sitting(run, first, last, mode="offline", status="finished", test=False):
    """A sitting of a run that logs these steps; its `.wandb` file."""
    trackers = Trackers([JsonLines(), Wandb("digits", mode=mode)])
    trackers.start(run)
    for step in range(first, last + 1):
        trackers.log(step, {"epoch": step / 10, "train/loss": 1 / step})
    if test:
        trackers.log(last, {"epoch": last / 10, "test/loss": 0.5})
    trackers.finish({}, status)
    return max(reader.find(run.directory), key=lambda path: path.stat().st_mtime_ns)


def cut(path, size):
    """Leaves of a file what a kill would have left."""
    path.write_bytes(path.read_bytes()[:size])


def steps_of(run):
    return [row["step"] for path in reader.find(run.directory) for row in reader.read(path).metrics]


def test_whatever_a_kill_has_left_a_resumed_run_has_every_step_once(client, run_info):
    path = sitting(run_info(), 1, 40, status="interrupted")
    whole, run = path.read_bytes(), run_info(start_step=30)
    (run.directory / METRICS).rename(record := run.directory / "record")
    # in the header, in the first record, between records and within them, and nearly the whole
    for size in (0, 7, 300, len(whole) // 2, len(whole) - 700, len(whole) - 1):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[:size])
        (run.directory / METRICS).write_bytes(record.read_bytes())
        later = sitting(run, 31, 45)
        assert steps_of(run) == list(range(1, 46)), size
        assert {reader.read(p).id for p in reader.find(run.directory)} == {path.stem[4:]}
        later.unlink()


def test_damaged_files_cost_no_step(client, run_info):
    path = sitting(run_info(), 1, 40, status="interrupted")
    run, damaged = run_info(start_step=40), bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 40] = bytes(40)
    path.write_bytes(damaged)
    (run.directory / STATE).write_text("")
    sitting(run, 41, 45)
    assert steps_of(run) == list(range(1, 46))
    assert {reader.read(p).id for p in reader.find(run.directory)} == {path.stem[4:]}


@pytest.mark.slow
def test_the_printed_command_sends_all_even_if_the_last_sitting_was_killed_at_once(
    server, run_info
):
    first = sitting(run_info(), 1, 25)
    cut(first, len(first.read_bytes()) - 200)
    run = run_info(start_step=20)
    sitting(run, 21, 40)
    command = json.loads((run.directory / STATE).read_text())["location"]
    last = sitting(run_info(start_step=40), 41, 41)
    cut(last, 7)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    shell = {"shell": True, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=60, cwd=run.directory, **shell)
    (arrived,) = server.runs.values()
    assert [row["step"] for row in arrived.metrics] == list(range(1, 41)), done.stderr


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_that_begins_again_is_the_same_run(server, run_info, mode):
    sitting(run_info(), 1, 5, mode, "failed")
    sitting(run_info(), 1, 9, mode)
    if mode == "online":
        (arrived,) = server.runs.values()
        assert [row["step"] for row in arrived.metrics] == list(range(1, 10))
    else:
        assert steps_of(run_info()) == list(range(1, 10))
        assert len({reader.read(path).id for path in reader.find(run_info().directory)}) == 1


def test_a_run_that_was_ended_in_its_test_has_the_test_all_the_same(client, run_info):
    sitting(run_info(), 1, 20, status="interrupted")
    run = run_info(start_step=20)
    path = sitting(run, 21, 20, test=True)
    assert [row.get("test/loss") for row in reader.read(path).metrics] == [0.5]


def test_a_sitting_that_went_well_is_left_as_it_is(client, run_info):
    path = sitting(run_info(), 1, 3)
    before = path.read_bytes()
    assert mend_offline_runs(path.parent.parent) == 3
    assert path.read_bytes() == before
    assert mend_offline_runs(path.parent.parent / "absent") == -1


def test_a_key_that_is_revoked_is_said_once(server, run_info, caplog):
    trackers = Trackers([JsonLines(), Wandb("digits")])
    trackers.start(run_info())
    for step in range(1, 5):
        trackers.log(step, {"train/loss": 1.0})
    server.broken = 401
    trackers.finish({}, "finished")
    said = [r.getMessage() for r in caplog.records if r.name.startswith("experiments")]
    (path,) = reader.find(run_info().directory)
    assert len(said) == 1
    assert said[0].startswith("W&B has refused a part of this run (")
    assert "401" in said[0]
    assert said[0].endswith(f"send it later: wandb sync --include-online {path.parent}")
    assert reader.read(path).metrics == recorded(run_info())
    server.broken = 0


def test_the_clients_log_is_read_as_it_grows(tmp_path):
    log = ClientLog(tmp_path / "debug-internal.log")
    assert log.refusal() is None  # there is none yet
    with log.path.open("a") as file:
        file.write('{"level":"ERROR","msg":"error getting latest commit"}\n{"level":"INFO"')
        file.flush()
        assert log.refusal() is None
        file.write(',"msg":"filestream: sent"}\n')
        file.write('{"level":"ERROR","msg":"filestream: json decode error","error":"bad"}\n')
        file.flush()
    assert log.refusal() == "filestream: json decode error: bad"
    assert log.refusal() is None


def test_a_resumed_run_whose_server_is_gone_goes_on_offline_as_the_same_run(
    client, run_info, monkeypatch
):
    sitting(run_info(), 1, 5, status="interrupted")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "START_TIMEOUT", 1.0)
    trackers = [Trackers([Wandb("digits")]) for _ in range(2)]  # the other in a new folder
    (other := run_info().directory.parent / "other").mkdir()
    trackers[1].start(run_info(directory=other))
    trackers[0].start(run_info(start_step=5))
    trackers[0].log(6, {"train/loss": 1.0})
    for tracker in trackers:
        tracker.finish({}, "finished")
    offline = [path for path in reader.find(run_info().directory) if "offline" in str(path)]
    assert [row["step"] for path in offline for row in reader.read(path).metrics] == [*range(1, 7)]
    assert len({path.name for path in offline}) == 1
