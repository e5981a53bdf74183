"""The process beside a run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiments.core.config import locate
from experiments.errors import UserError
from experiments.training import helper
from experiments.training.helper import Helper
from experiments.viz import drawing

STARTS_ONE = """
import time
from experiments.training.helper import helper
print(helper().submit("tracking", __import__("os").getpid).result(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def beside():
    process = Helper()
    yield process
    process.close()


def gone(pid: int) -> bool:
    """Within a second; one that nobody waits for is left as a zombie by some containers."""
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.01)
    return False


def test_errors_that_a_user_can_put_right_arrive_as_they_are(beside, tmp_path):
    with pytest.raises(UserError, match="names no importable module"):
        beside.submit("tracking", locate, "nothing.of.this.name").result()
    path, picture = tmp_path / "no folder" / "curves.png", drawing.figures.learning_curves([])
    with pytest.raises(FileNotFoundError) as raised:
        beside.submit("drawing", drawing.save, picture, path).result()
    assert raised.value.filename == str(path)


def test_errors_of_other_packages_arrive_by_name(beside):
    with pytest.raises(Exception, match="while parsing") as raised:
        beside.submit("tracking", yaml.safe_load, "a: [").result()
    assert type(raised.value).__name__ == "ParserError"


def test_one_queue_does_not_wait_for_the_other(beside):
    slow = beside.submit("tracking", time.sleep, 5)
    beside.submit("drawing", os.getpid).result()
    assert not slow.done()


def test_it_draws_without_jax(beside, tmp_path):
    picture = drawing.figures.learning_curves([{"step": 1, "train/loss": 0.5}])
    beside.submit("drawing", drawing.save, picture, tmp_path / "curves.png").result()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert not beside.submit("drawing", eval, "'jax' in __import__('sys').modules").result()


def test_calls_of_one_that_was_killed_fail_and_a_new_one_is_started():
    first = helper.helper()
    pid = first.submit("tracking", os.getpid).result()
    waiting = first.submit("tracking", time.sleep, 60)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError):
        waiting.result()
    assert helper.helper().submit("tracking", os.getpid).result() != pid


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_run_however_that_ends(how):
    run = subprocess.Popen([sys.executable, "-c", STARTS_ONE], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    with run.stdout:
        pid = int(run.stdout.readline())
        run.send_signal(how)
        run.wait()
    assert gone(pid)
