"""The cost of a run as it grows: in batch size, depth, trials and rows of a streamed data set.

    python -m benchmarks.scaling [--only batch,depth,trials,rows] [--json FILE]

The first three time the training program of a run, on images of noise or on the digits, in this
process. For the rows MNIST is laid out several times over, by links, and streamed by `run.py`;
memory is the most that the process ever held, decoding included (`data.workers=0`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.turns import ROOT

BATCHES = (8, 32, 128, 512, 2048)
DEPTHS = (20, 32, 56, 110)
TRIALS = (1, 8, 32, 128, 512)
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
TURNS = 5  # timings; their median counts
Row = dict[str, Any]


def main() -> None:
    """Measure and print a table each."""
    measured: dict[str, Callable[[], list[Row]]] = {
        "batch": batch,
        "depth": depth,
        "trials": trials,
        "rows": rows,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(measured), help="which, separated by commas")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    figures = {}
    for name in options.only.split(","):
        figures[name] = measured[name]()
        print("  ".join(f"{key:>20}" for key in figures[name][0]))
        for row in figures[name]:
            print("  ".join(f"{value:>20.4g}" for value in row.values()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def batch() -> list[Row]:
    """LeNet-5 on 28x28."""
    found = []
    for size in BATCHES:
        _, step = _step(["model=lenet5", "data=mnist"], size)
        found.append({"batch": size, "ms a step": 1e3 * step, "images a second": size / step})
    return found


def depth() -> list[Row]:
    """ResNets for CIFAR-10, batches of 16."""
    found = []
    for layers in DEPTHS:
        compiling, step = _step([f"model=resnet{layers}", "data=cifar10"], 16)
        a_layer = 1e3 * step / layers
        timed = {"s to compile": compiling, "ms a step": 1e3 * step, "ms a layer": a_layer}
        found.append({"layers": layers} | timed)
    return found


def trials() -> list[Row]:
    """An MLP of 32 units on the digits, batches of 128, as a population of so many trials."""
    from benchmarks.our_step import composed, stack_of

    config = composed("model=mlp", "model.hidden=[32]", "data=digits")
    found = []
    for count in TRIALS:
        stack = stack_of(config, count, width=count)
        window = next(iter(stack.feed.windows(0, stack.setup.experiment.steps_per_epoch)))
        step = _timed(lambda s=stack, w=window: s.step(w, 0, w.end)) / window.end
        each = {"ms per step of all": 1e3 * step, "ms per trial": 1e3 * step / count}
        found.append({"trials": count} | each)
    return found


def rows() -> list[Row]:
    """LeNet-5 on MNIST, streamed, 300 steps of 128."""
    from experiments.data.reading.prepared import data_dir

    source = sorted((data_dir(None) / "mnist").glob("*.*.*"))[-1]
    found = []
    for count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            _repeat(source, Path(folder, "mnist", source.name), count)
            run = Path(folder, "run")
            command = [
                *("run.py", "model=lenet5", "data=mnist", f"data.dir={folder}", "logger=none"),
                *(
                    "data.stream=true",
                    "data.workers=0",
                    "trainer.epochs=1",
                    "trainer.figures=false",
                ),
                *("trainer.steps_per_epoch=300", "trainer.eval_batches=10", f"hydra.run.dir={run}"),
            ]
            started = time.perf_counter()
            memory = 0.0
            with subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL
            ) as process:
                while process.poll() is None:
                    memory = _most_memory(process.pid) or memory
                    time.sleep(0.05)
            seconds = time.perf_counter() - started
            if process.returncode:
                raise SystemExit(f"python {' '.join(command)}: exit code {process.returncode}")
            rate = json.loads((run / "summary.json").read_text())["examples_per_second"]
        found.append({"rows": count, "MiB": memory, "s in all": seconds, "images a second": rate})
    return found


def _most_memory(pid: int) -> float | None:
    """The most that a process has held so far, in MiB; None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except ProcessLookupError:
        return None
    return next((int(n.split()[1]) / 1024 for n in lines if n.startswith("VmHWM")), None)


def _repeat(source: Path, target: Path, count: int) -> None:
    """Lay out a data set with at least `count` rows to train on, links to the same file."""
    target.mkdir(parents=True)
    for name in ("features.json", "dataset_info.json"):
        (target / name).write_bytes((source / name).read_bytes())
    info = json.loads((target / "dataset_info.json").read_text())
    for split in info["splits"]:
        (length,), name = map(int, split["shardLengths"]), split["name"]
        times = -(-count // length) if name == "train" else 1
        split["shardLengths"] = [str(min(length, count))] * times if name == "train" else [length]
        original = next(source.glob(f"mnist-{name}.array_record-*"))
        for index in range(times):
            link = target / f"mnist-{name}.array_record-{index:05d}-of-{times:05d}"
            link.symlink_to(original.resolve())
    (target / "dataset_info.json").write_text(json.dumps(info))


def _step(config: list[str], size: int) -> tuple[float, float]:
    """Seconds to compile the training program for batches of this size, and of a step."""
    from benchmarks.our_step import composed, stack_of

    noise = "data._target_=benchmarks.random_images.RandomImages"
    count = 4
    own = [f"data.batch_size={size}", f"data.limit={count * size}", noise]
    started = time.perf_counter()
    stack = stack_of(composed(*config, *own))
    compiling = time.perf_counter() - started
    window = next(iter(stack.feed.windows(0, 1)))
    return compiling, _timed(lambda: stack.step(window, 0, count)) / count


def _timed(run: Callable[[], Any]) -> float:
    """Seconds of a call, the median of several after one to warm up."""
    import jax

    seconds = []
    for _ in range(TURNS + 1):
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
