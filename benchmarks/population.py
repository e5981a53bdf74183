"""A sweep as one population against the same trials by other means, whole processes timed.

    python -m benchmarks.population [--only mlp,lenet5] [--torch PYTHON] [--json FILE]

Ours: `run.py -m ... side_by_side=auto`. Against (i) a process per trial, (ii) trials one after
another in one process, with data and compiled programs shared (`side_by_side=1`), (iii) Optuna
around an equivalent PyTorch loop in one process (`benchmarks/peers/torch_search.py`, run by the
interpreter `--torch`).
The compilation cache is empty at the start of every measurement of ours, and shared by the
processes of (i). Of the MLP's 128 the first compiles, eight more are timed, and the rest is taken
to be like those. Ours is the median of three sweeps, between which those processes are timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

CASES = {
    "mlp": {
        "config": ["model=mlp", "model.hidden=[32]", "data=digits", "trainer.epochs=20"],
        "trials": 128,
        "alone": 9,
        "epochs": 20,
    },
    "lenet5": {
        "config": ["model=lenet5", "data=mnist", "data.limit=10000", "trainer.epochs=1"],
        "trials": 16,
        "alone": 16,
        "epochs": 1,
    },
}
SEARCH = "optim.learning_rate=tag(log,interval(1e-4,1e-1))"
SWEEPS = 3  # of ours; their median counts
COMMON = ["logger=none", "trainer.figures=false"]


def main() -> None:
    """Runs the cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--torch", default=sys.executable, help="an interpreter that has Torch")
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    results = [
        result for name in arguments.only.split(",") for result in measure(name, arguments.torch)
    ]
    print(f"{'case':8} {'against':44} {'ours':>9} {'peer':>9} {'ratio':>7}")
    for r in results:
        print(
            f"{r['name']:8} {r['peer']:44} {r['ours_seconds']:8.1f}s {r['peer_seconds']:8.1f}s "
            f"{r['ratio']:6.1f}x"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


def measure(name: str, python: str, **changes: Any) -> list[dict]:
    """One case, with `changes` to it, against its peers, one after another."""
    case = CASES[name] | changes
    trials = case["trials"]
    ours, alone = in_turns(case["config"], trials, case["alone"])
    peers = {
        "(i) a process a trial": alone,
        "(ii) one process, programs reused": sweep(case["config"], trials, 1),
    }
    probe = subprocess.run([python, "-c", "import torch, optuna"], capture_output=True)
    if probe.returncode == 0:
        seconds = by_torch(name, case["config"], trials, case["epochs"], python)
        peers["(iii) Optuna and PyTorch, one process"] = seconds
    else:
        print("(iii) is left out: no Torch and Optuna; pip install -e '.[bench]'", file=sys.stderr)
    command = " ".join(["python run.py -m", *case["config"], f"'{SEARCH}'", "side_by_side=auto"])
    return [
        {
            "name": name,
            "peer": peer,
            "trials": trials,
            "ours_seconds": ours,
            "peer_seconds": seconds,
            "ratio": seconds / ours,
            "trials_per_hour": 3600 * trials / ours,
            "compared": [command, peer],
        }
        for peer, seconds in peers.items()
    ]


def sweep(config: Sequence[str], trials: int, side_by_side: str | int) -> float:
    """Seconds of `run.py -m` with so many trials."""
    with tempfile.TemporaryDirectory() as folder:
        own = [f"n_trials={trials}", f"side_by_side={side_by_side}", f"study={folder}/study"]
        cache = f"trainer.compilation_cache={folder}/xla"
        return _run(["run.py", "-m", *config, SEARCH, *COMMON, cache, *own, "allow=[benchmarks]"])


def in_turns(config: Sequence[str], trials: int, timed: int) -> tuple[float, float]:
    """Seconds of a sweep, the median of `SWEEPS`, and of a process a trial, one after another.

    Of those processes some are `timed`, a few after each sweep, as machines change their speed. The
    first one compiles for all. Those that are not timed take as long as the others on average.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache = f"trainer.compilation_cache={folder}/xla"
        rates = np.geomspace(1e-4, 1e-1, timed)
        first, *others = (
            [f"optim.learning_rate={rate:.3g}", f"hydra.run.dir={folder}/{index}"]
            for index, rate in enumerate(rates)
        )
        compiling = _run(["run.py", *config, *COMMON, cache, *first])
        sweeps: list[float] = []
        seconds: list[float] = []
        for turn in range(SWEEPS):
            sweeps.append(sweep(config, trials, "auto"))
            for run in others[turn::SWEEPS]:
                seconds.append(_run(["run.py", *config, *COMMON, cache, *run]))
    return statistics.median(sweeps), compiling + (trials - 1) * statistics.mean(seconds)


def by_torch(name: str, config: Sequence[str], trials: int, epochs: int, python: str) -> float:
    """Seconds of a process with so many trials in PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        _write_data(config, path)
        peer = ["-m", "benchmarks.peers.torch_search", name, str(trials), str(epochs), str(path)]
        return _run(peer, python)


def _write_data(config: Sequence[str], path: Path) -> None:
    """The training and validation images as ours sees them, for the peer."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from experiments.core.config import build

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = OmegaConf.to_container(compose("config", overrides=list(config)), resolve=True)
    data = build(plain["data"])
    splits, pipeline = data.load(), data.pipeline
    arrays = {}
    for short, split in (("train", splits.train), ("val", splits.validation)):
        prepared = pipeline(split.arrays, None, train=False)
        arrays[f"{short}_x"] = np.asarray(prepared["image"], np.float32).transpose(0, 3, 1, 2)
        arrays[f"{short}_y"] = np.asarray(prepared["label"], np.int64)
    np.savez(path, **arrays)


def _run(arguments: Sequence[str], python: str = sys.executable) -> float:
    start = time.perf_counter()
    ended = subprocess.run(
        [python, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
