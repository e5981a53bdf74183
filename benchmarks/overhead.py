"""The cost of a run beside the bare jitted step: time of a step, and memory."""

import json
import subprocess
import sys
from typing import Any

from benchmarks.results import Record, record
from benchmarks.turns import ROOT

# of an epoch, at whose end a checkpoint is saved; a minute of VGG-16, which is how often runs save
STEPS = {"lenet5": 600, "vgg16": 230}
QUICK_STEPS = 4


def overhead(pairs: int, quick: bool) -> list[Record]:
    """Seconds a step, both in one process."""
    results = []
    for name in ["lenet5"] if quick else STEPS:
        steps = str(QUICK_STEPS if quick else STEPS[name])
        measured = _json("time", name, str(pairs), steps, *_size(quick))
        compared = ("benchmarks.tracked.tracked", "benchmarks.tracked.bare")
        results.append(record(f"overhead_{name}", "bare jitted step", measured, compared))
    return results


def memory(pairs: int, quick: bool) -> list[Record]:
    """The most memory that a process ever held, in MiB; `ratio` is that of memory."""
    name = "lenet5" if quick else "vgg16"
    steps = str(QUICK_STEPS if quick else STEPS[name])
    ours, data = _json("memory", name, steps, "ours", *_size(quick))
    bare, _ = _json("memory", name, steps, "bare", *_size(quick))
    return [
        {
            "name": f"memory_{name}",
            "peer": "bare jitted step",
            "ours_seconds": None,
            "peer_seconds": None,
            "ours_mib": round(ours),
            "peer_mib": round(bare),
            "data_mib": round(data, 1),
            "ratio": bare / ours,
            "compared": ["benchmarks.tracked.tracked", "benchmarks.tracked.bare"],
        }
    ]


def _size(quick: bool) -> list[str]:
    return ["--quick"] if quick else []


def _json(*arguments: str) -> Any:
    """Return the figures that `benchmarks.tracked` prints at its end."""
    command = [sys.executable, "-m", "benchmarks.tracked", *arguments]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])
