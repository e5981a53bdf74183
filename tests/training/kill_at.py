"""Run `run.py` and kill the process, as `kill -9` does, at a named moment.

    python tests/training/kill_at.py MOMENT FOLDER OVERRIDES...

Python reports every file that it opens, renames or removes before it does so. A moment is a regular
expression for such a report about the run folder, such as `remove checkpoints/12`, or `test`,
when the best weights have been tested and nothing was written of that.
"""

import os
import re
import runpy
import signal
import sys
from pathlib import Path

from experiments.training.stack import Stack

EVENTS = {"open": "write", "os.mkdir": "mkdir", "os.rename": "rename", "os.rmdir": "remove"}
moment, folder, *overrides = sys.argv[1:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def look(event: str, arguments: tuple) -> None:
    if event not in EVENTS or not str(arguments[0]).startswith(folder + os.sep):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    if re.fullmatch(moment, f"{EVENTS[event]} {Path(arguments[0]).relative_to(folder)}"):
        die()


def evaluate_best(*arguments, _evaluate=Stack.evaluate_best):
    _evaluate(*arguments)
    die()


if moment == "test":
    Stack.evaluate_best = evaluate_best
sys.addaudithook(look)
sys.argv = ["run.py", *overrides]
runpy.run_path("run.py", run_name="__main__")
