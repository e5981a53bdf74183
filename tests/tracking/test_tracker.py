import logging

import pytest

from experiments.errors import UserError
from experiments.tracking.apart import Apart
from experiments.tracking.jsonl import METRICS, JsonLines, read_history
from experiments.tracking.tracker import Tracker, Trackers
from experiments.training import helper


class Notes(Tracker):
    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append("start")

    def log(self, step, scalars):
        self.calls.append(step)

    def finish(self, summary, status):
        self.calls.append((dict(summary), status))


class Broken(Notes):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def log(self, step, scalars):
        super().log(step, scalars)
        raise self.error


class Elsewhere(Tracker):
    location = "https://example.org/run"


def test_every_tracker_gets_every_call(run_info):
    trackers = Trackers([Notes(), Notes()])
    trackers.start(run_info())
    trackers.status("compiling")
    trackers.log(1, {"train/loss": 1.0})
    trackers.finish({}, "finished")
    assert [t.calls for t in trackers.trackers] == [["start", 1, ({}, "finished")]] * 2


def test_tracker_that_raises_is_dropped_with_one_warning(run_info, caplog):
    broken, sound = Broken(RuntimeError("no more")), Notes()
    trackers = Trackers([broken, sound])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            trackers.log(step, {})
    assert broken.calls == [0, ({}, "failed")]
    assert sound.calls == [0, 1, 2]
    assert caplog.messages == ["Broken is dropped from this run: RuntimeError: no more"]


def test_user_error_ends_the_run():
    with pytest.raises(UserError, match="disk"):
        Trackers([Broken(UserError("the disk is full")), Notes()]).log(0, {})


def test_every_tracker_is_finished_before_a_user_error_is_raised():
    class Full(Notes):
        def finish(self, summary, status):
            raise UserError("the disk is full")

    last = Notes()
    with pytest.raises(UserError):
        Trackers([Full(), last]).finish({}, "failed")
    assert last.calls == [({}, "failed")]


def test_summary_says_where_else_the_run_is():
    notes = Notes()
    Trackers([notes, Elsewhere()]).finish({"val/loss": 0.1}, "finished")
    expected = {"val/loss": 0.1, "wandb": "https://example.org/run"}
    assert notes.calls == [(expected, "finished")]


def test_a_tracker_apart_is_told_all_in_order(run_info):
    tracker, run = Apart(JsonLines()), run_info()
    tracker.start(run)
    for step in range(1, 6):
        tracker.log(step, {"train/loss": step / 4})
    tracker.finish({}, "finished")
    history = read_history(run.directory / METRICS)
    assert [(line["step"], line["train/loss"]) for line in history] == [
        (step, step / 4) for step in range(1, 6)
    ]


def test_what_a_tracker_apart_raises_comes_out_of_a_later_call(run_info, tmp_path):
    tracker = Apart(JsonLines())
    tracker.start(run_info(directory=tmp_path / "nowhere"))
    assert tracker.location is None
    with pytest.raises(UserError, match="cannot write"):
        tracker.finish({}, "finished")


def test_a_tracker_whose_process_has_ended_says_so(run_info):
    tracker = Apart(JsonLines())
    tracker.start(run_info())
    assert tracker.location is None  # it has started, and nothing else is under way
    helper.end()
    with pytest.raises(ChildProcessError, match="has ended"):
        tracker.finish({}, "finished")


def test_a_tracker_apart_that_was_never_started_has_nothing_to_finish():
    Apart(JsonLines()).finish({}, "failed")
