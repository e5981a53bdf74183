"""The gain of trials from a core each.

    python -m benchmarks.cores [--only lenet5,lstm] [--json FILE]

The step of a population on one device of all cores and on a device a core, in turns, each in a
process of its own: how many devices there are is decided once. Medians of the turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.turns import ROOT

CASES: dict[str, tuple[list[str], int, int]] = {  # config, trials, how many as one batch
    "lenet5": (["model=lenet5", "data=mnist"], 16, 1),
    "lstm": (["model=lstm", "data=mnist"], 16, 1),
    "autoencoder": (["model=autoencoder", "data=mnist"], 16, 1),
    "vae": (["model=vae", "data=mnist"], 16, 1),
    "resnet20": (["model=resnet20", "data=cifar10", "data.batch_size=64"], 2, 1),
    "mlp": (["model=mlp", "model.hidden=[32]", "data=digits"], 128, 128),
}
STEPS, TURNS = 10, 3


def main() -> None:
    """Measure and print a table, or as `--here` one time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="which, separated by commas")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--here", choices=["one", "each"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(seconds_per_step(*CASES[options.only], split=options.here == "each"))
        return
    rows: list[dict[str, Any]] = []
    print(f"{'':14} {'one device, ms':>16} {'one a core, ms':>16} {'times as fast':>14}")
    for name in options.only.split(","):
        pairs = [(1e3 * _apart(name, "one"), 1e3 * _apart(name, "each")) for _ in range(TURNS)]
        one, each = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append({"name": name, "one_ms": one, "each_ms": each, "ratio": ratio})
        print(f"{name:14} {one:16.3g} {each:16.3g} {ratio:14.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _apart(name: str, devices: str) -> float:
    command = [sys.executable, "-m", "benchmarks.cores", "--only", name, "--here", devices]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def seconds_per_step(config: list[str], trials: int, width: int, *, split: bool) -> float:
    """Return the seconds of a step of all trials over the number computed one after another."""
    import jax

    from benchmarks.our_step import composed, stack_of
    from experiments.training.runtime import split_processor

    split_processor(trials if split else 1)
    config = composed(*config, "data.limit=1280", "logger=none")
    stack = stack_of(config, trials, width)
    window = next(iter(stack.feed.windows(0, 1)))
    times = []
    for _ in range(TURNS + 1):
        started = time.perf_counter()
        jax.block_until_ready(stack.step(window, 0, STEPS))
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]) / STEPS / (trials / width)


if __name__ == "__main__":
    main()
