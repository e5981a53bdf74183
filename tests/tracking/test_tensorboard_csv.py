"""TensorBoard and CSV, alone or with other trackers."""

import csv
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.core.callback import callback_nodes
from experiments.errors import UserError
from experiments.tracking import tensorboard
from experiments.tracking.csv import Csv
from experiments.tracking.jsonl import METRICS, JsonLines, read_history
from experiments.tracking.tensorboard import TensorBoard
from experiments.tracking.tracker import Background, Trackers, chosen
from support import composed


def events_of(folder: Path) -> list:
    """The events of all files, oldest file first: each record is a length, data and two sums."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    events = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            start = position + 12
            events.append(event_pb2.Event.FromString(data[start : start + length]))
            position = start + length + 4
    return events


def scalars_of(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events_of(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_tensorboard_gets_scalars_figures_and_the_config(run_info):
    run = run_info()
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    path = run.directory / "curves.png"
    figure.savefig(path, dpi=100)
    trackers = Trackers([TensorBoard()])
    trackers.start(run)
    trackers.log(1, {"train/loss": 0.5})
    trackers.log(2, {"train/loss": 0.25, "val/loss": 1.0})
    trackers.histogram(2, "outputs", np.array([3, 1]), np.array([-1.0, 0.0, 1.0]))
    trackers.figure(2, "curves", path)
    trackers.finish({}, "finished")
    assert scalars_of(run.directory) == [
        (1, "train/loss", 0.5),
        (2, "train/loss", 0.25),
        (2, "val/loss", 1.0),
    ]
    values = [value for event in events_of(run.directory) for value in event.summary.value]
    (found,) = [value.histo for value in values if value.HasField("histo")]
    assert (found.min, found.max, found.num, found.sum) == (-1, 1, 4, -1)
    assert (list(found.bucket_limit), list(found.bucket)) == ([0, 1], [3, 1])
    (image,) = [value.image for value in values if value.HasField("image")]
    assert (image.height, image.width) == (100, 200)
    texts = [v.tensor.string_val[0].decode() for v in values if v.tag.startswith("config")]
    assert '"learning_rate": 0.001' in texts[0]


def test_a_resumed_run_replaces_what_it_repeats_in_tensorboard(run_info):
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        tracker = TensorBoard()
        tracker.start(run_info(start_step=start))
        for step in steps:
            tracker.log(step, {"a": 1.0})
        tracker.finish({}, "finished")
    restarts = [e.step for e in events_of(run_info().directory) if e.HasField("session_log")]
    assert restarts == [3]  # TensorBoard drops what an earlier file has from this step on


def test_tensorboard_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboardx"):
        TensorBoard()


def test_csv_has_a_row_per_event_and_a_column_per_metric(run_info):
    run = run_info()
    trackers = Trackers([JsonLines(), Csv()])
    trackers.start(run)
    trackers.log(1, {"train/loss": 0.5})
    trackers.log(2, {"train/loss": float("nan"), "val/loss": 1.0})
    trackers.finish({}, "finished")
    with (run.directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"step": "1", "train/loss": "0.5", "val/loss": ""}
    assert np.isnan(float(rows[1]["train/loss"]))
    assert rows[1]["val/loss"] == "1.0"


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("wandb", ["Wandb"]),
        ("none", ["Trackers"]),
        ("csv", ["Csv"]),
        ("[wandb,tensorboard,csv]", ["Wandb", "TensorBoard", "Csv"]),
    ],
)
def test_the_logger_is_one_choice_or_several(choice, kinds):
    config = composed(f"logger={choice}")
    followed = [t.trackers[0] if isinstance(t, Background) else t for t in chosen(config)]
    assert [type(tracker).__name__ for tracker in followed] == kinds


def test_keys_of_a_logger_are_where_the_command_line_finds_them():
    several = composed("logger=[wandb,tensorboard]")
    found = callback_nodes(several)
    assert list(found) == ["logger", "logger.tensorboard"]
    assert found["logger.tensorboard"]["_target_"].endswith("TensorBoard")
    assert found["logger"]["finish_timeout"] == 8.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_costs_tensorboard_and_no_run(run_info, caplog):
    pytest.importorskip("tensorboardX")
    run = run_info()
    trackers = Trackers([JsonLines(), TensorBoard()])
    trackers.start(run)
    (events,) = (run.directory / "tensorboard").iterdir()
    full = os.open("/dev/full", os.O_WRONLY)
    for path in Path("/dev/fd").iterdir():  # the disk is full from here on
        if path.exists() and path.samefile(events):
            os.dup2(full, int(path.name))
    for step in range(1, 100):
        trackers.log(step, {"a": 1.0})
    trackers.finish({}, "finished")
    (message,) = caplog.messages
    assert message.startswith("TensorBoard is dropped from this run: OSError: [Errno 28]")
    assert len(read_history(run.directory / METRICS)) == 99


def test_a_killed_run_has_all_its_events(run_info):
    tracker = TensorBoard()
    tracker.start(run_info())
    tracker.log(1, {"a": 1.0})  # and nothing after that
    assert scalars_of(run_info().directory) == [(1, "a", 1.0)]
