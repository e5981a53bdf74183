import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.tracking.jsonl import METRICS, SUMMARY, JsonLines, read_history


def record(run, steps, **scalars):
    tracker = JsonLines()
    tracker.start(run)
    for step in steps:
        tracker.log(step, {"train/loss": 1 / (step + 1), **scalars})
    return tracker


def steps_in(run):
    return [event["step"] for event in read_history(run.directory / METRICS)]


def test_lines_are_on_disk_as_they_are_logged(run_info):
    run = run_info()
    record(run, [1, 2], **{"val/loss": 0.25})
    lines = (run.directory / METRICS).read_text().splitlines()
    assert lines == [
        '{"step": 1, "train/loss": 0.5, "val/loss": 0.25}',
        '{"step": 2, "train/loss": 0.3333333333333333, "val/loss": 0.25}',
    ]


def test_non_finite_values_are_valid_json_and_come_back(run_info):
    run = run_info()
    record(run, [1], a=math.nan, b=math.inf, c=-math.inf)
    path = run.directory / METRICS

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(path.read_text(), parse_constant=refuse)["a"] == "NaN"
    (event,) = read_history(path)
    assert math.isnan(event["a"])
    assert (event["b"], event["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("torn", ["", '{"step": 21, "tr', '{"step": 21}'])
def test_resumed_run_has_no_step_twice(run_info, torn):
    run = run_info()
    record(run, range(1, 21))
    with (run.directory / METRICS).open("a") as file:
        file.write(torn)  # the process was killed while it wrote
    record(run_info(start_step=12), range(13, 41))
    assert steps_in(run) == list(range(1, 41))


DAMAGED = [
    "\0\0\0",
    "[1, 2]",
    "7",
    "null",
    '{"train/loss": 1.0}',
    '{"step": "4"}',
    '{"step": 2, "tr',
    "[" * 9000,
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_costs_no_other_line(run_info, caplog, damaged):
    run = run_info()
    record(run, [1, 2, 3, 4, 5, 6])
    path = run.directory / METRICS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damaged, *lines[3:], damaged]))
    assert steps_in(run) == [1, 2, 4, 5, 6]
    assert f"{path}: what cannot be read is left out: 2 lines (3, 7)" in caplog.text
    caplog.clear()
    record(run_info(start_step=5), [6, 7])
    assert "2 lines (3, 7)" in caplog.text
    caplog.clear()
    assert steps_in(run) == [1, 2, 4, 5, 6, 7]
    assert not caplog.text


def test_resume_before_the_first_line(run_info):
    run = run_info(start_step=5)
    record(run, [6])
    assert steps_in(run) == [6]


def test_new_run_in_a_used_folder_starts_afresh(run_info):
    record(run_info(), [1, 2, 3])
    record(run_info(), [1])
    assert steps_in(run_info()) == [1]


def test_torn_last_line_is_not_read(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_history(path) == [{"step": 1}]
    assert read_history(tmp_path / "absent") == []


def test_summary(run_info):
    run = run_info()
    summary = {
        "val/loss": math.nan,
        "test/accuracy": np.float32(0.5),
        "best": {"epoch": 3.0, "val/loss": math.inf},
        "folder": Path("runs/a"),
    }
    record(run, [1]).finish(summary, "diverged")
    assert json.loads((run.directory / SUMMARY).read_text()) == {
        "val/loss": "NaN",
        "test/accuracy": 0.5,
        "best": {"epoch": 3.0, "val/loss": "Infinity"},
        "folder": "runs/a",
        "status": "diverged",
    }
    assert sorted(os.listdir(run.directory)) == [METRICS, SUMMARY]


def test_finish_without_start_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    JsonLines().finish({}, "failed")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_reported_to_the_user(run_info):
    run = run_info()
    (run.directory / METRICS).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl: no space left on device\. Make room"):
        record(run, [1])


def test_folder_that_cannot_be_written_is_reported_to_the_user(run_info):
    run = run_info()
    with pytest.raises(UserError, match="no such file or directory"):
        JsonLines().start(run_info(directory=run.directory / "absent"))
