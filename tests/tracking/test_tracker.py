import logging
import threading
from asyncio import CancelledError

import pytest

from experiments.errors import UserError
from experiments.tracking.tracker import Background, Tracker, Trackers


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


class Record(Broken):
    essential = True


def test_a_record_that_cannot_be_written_ends_the_run():
    with pytest.raises(UserError, match="disk"):
        Trackers([Record(UserError("the disk is full")), Notes()]).log(0, {})


class Awkward(Tracker):
    """Raises an error in one of its calls, or when it is asked where the run is."""

    def __init__(self, method, error):
        self.method, self.error = method, error

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "method"):
            raise self.error
        return super().__getattribute__(name)


CALLS = ("start", "status", "log", "progress", "figure", "model", "finish", "location")


@pytest.mark.parametrize("behind", [Background, lambda tracker: tracker], ids=["behind", "beside"])
@pytest.mark.parametrize(
    "error", [OSError("no more"), SystemExit(1), CancelledError()], ids=lambda e: type(e).__name__
)
def test_no_call_of_a_tracker_ends_a_run(run_info, error, behind):
    for method in CALLS:
        notes = Notes()
        trackers = Trackers([behind(Awkward(method, error)), notes])
        trackers.start(run_info())
        trackers.status("compiling")
        trackers.log(1, {})
        trackers.progress(2, {})
        trackers.figure(2, "curves", run_info().directory / "curves.png")
        trackers.model(run_info().directory)
        trackers.finish({}, "finished")
        assert notes.calls == ["start", 1, ({}, "finished")], method


def test_a_tracker_that_cannot_show_a_picture_goes_on_without(run_info, caplog):
    class Blind(Notes):
        def figure(self, step, name, path):
            raise OSError(f"cannot identify {path.name}")

    for tracker in (blind := Blind(), Background(seen := Blind())):
        trackers = Trackers([tracker])
        trackers.start(run_info())
        trackers.figure(1, "curves", run_info().directory / "curves.png")
        trackers.log(1, {})
        trackers.finish({}, "finished")
    assert blind.calls == seen.calls == ["start", 1, ({}, "finished")]
    assert all("cannot identify curves.png" in message for message in caplog.messages)


def test_every_tracker_is_finished_before_a_user_error_is_raised():
    class Full(Notes):
        essential = True

        def finish(self, summary, status):
            raise UserError("the disk is full")

    last = Notes()
    with pytest.raises(UserError):
        Trackers([Full(), last]).finish({}, "failed")
    assert last.calls == [({}, "failed")]


def test_summary_says_where_else_the_run_is():
    notes = Notes()
    Trackers([notes, Elsewhere()]).finish({"val/loss": 0.1}, "finished")
    expected = {"val/loss": 0.1, "elsewhere": "https://example.org/run"}
    assert notes.calls == [(expected, "finished")]


class Slow(Notes):
    """A tracker that does nothing until it is let go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()

    def start(self, run):
        self.let_go.wait()
        super().start(run)


def test_a_run_does_not_wait_for_a_tracker_in_the_background_until_it_ends(run_info):
    slow = Slow()
    tracker = Background(slow)
    tracker.start(run_info())
    scalars = {"train/loss": 1.0}
    for step in range(5):
        tracker.log(step, scalars)
    assert slow.calls == []
    slow.let_go.set()
    tracker.finish({}, "finished")
    assert slow.calls == ["start", 0, 1, 2, 3, 4, ({}, "finished")]


@pytest.mark.parametrize(
    "error", [RuntimeError("no more"), UserError("no more"), SystemExit("no more")]
)
def test_a_tracker_in_the_background_never_ends_a_run(run_info, caplog, error):
    broken = Broken(error)
    trackers = Trackers([Background(broken)])
    trackers.start(run_info())
    for step in range(3):
        trackers.log(step, {})
    assert trackers.location is None
    trackers.finish({}, "finished")
    assert broken.calls == ["start", 0, ({}, "failed")]
    assert caplog.messages == [f"Broken is dropped from this run: {type(error).__name__}: no more"]
