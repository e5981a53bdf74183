"""Seconds that deep networks take from the command to their first optimizer step.

    python -m benchmarks.startup                        # the table, about three minutes
    python -m benchmarks.startup resnet50 resnet152 --json startup.json

Each network starts twice on the digits, resized to 32x32, in batches of 8: with no compiled
program at hand, and again with those that the first start left. Seconds are of the clock and, as
other work on the machine changes those, of all processor cores together. The runs are long ones,
which are asked to stop after that step: what is short is compiled with less trouble.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.turns import ROOT

MODELS = ["resnet50", "resnet152", "vgg16", "googlenet", "densenet121"]
COMMAND = [
    *("run.py", "data=digits", "data.batch_size=8", "logger=none", "trainer.epochs=100"),
    *("trainer.log_every=1", "trainer.checkpoints=false", "trainer.figures=false"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="files of conf/model")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    print(f"{'model':16} {'cold s':>7} {'CPU s':>7} {'warm s':>7} {'CPU s':>7}")
    figures = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (first_step(model, Path(folder), state) for state in ("cold", "warm"))
        figures[model] = {"cold": cold, "warm": warm}
        row = [value for start in (cold, warm) for value in start.values()]
        print(f"{model:16} " + " ".join(f"{value:7.1f}" for value in row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def first_step(model: str, folder: Path, state: str) -> dict[str, float]:
    """Seconds until a run has written the metrics of its first step; it is then asked to stop."""
    lines = folder / state / "metrics.jsonl"
    own = [f"model={model}", f"trainer.compilation_cache={folder}/xla"]
    command = [sys.executable, *COMMAND, *own, f"hydra.run.dir={folder / state}"]
    start = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **quiet) as process:
        while not (lines.exists() and lines.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
            time.sleep(0.02)
        seconds, cpu_seconds = time.perf_counter() - start, processor_seconds(process.pid)
        process.terminate()  # it still leaves its programs to later runs
        process.wait()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def processor_seconds(pid: int) -> float:
    """Return the seconds of processor time that all threads of a process have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
