"""A training of a run against the bare jitted step: time and memory of all that a run adds.

    python -m benchmarks.tracked time NAME PAIRS STEPS [--quick]    pairs of seconds a step
    python -m benchmarks.tracked memory NAME STEPS ours|bare [--quick]    most memory held, in MiB

Ours is `fit` as `run.py` calls it, with metrics.jsonl, W&B offline, the terminal, validation of an
image and a checkpoint an epoch; what is timed is its second epoch. The bare step is
`jax.jit(train_step)` in a Python loop on batches that are on the device already, read back at the
end.
"""

import functools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.our_step import on_noise
from benchmarks.results import alternate
from benchmarks.steps import BATCHES, CASES, sized
from experiments.core.rng import root_key
from experiments.machine import StopRequest
from experiments.tracking.jsonl import JsonLines
from experiments.tracking.terminal import Terminal
from experiments.tracking.tracker import Tracker, Trackers, chosen
from experiments.training.loop import fit
from experiments.training.setup import Setups
from experiments.training.trial import Trial


class Clock(Tracker):
    """When each epoch ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if "train/epoch_loss" in scalars:
            self.ends.append(time.perf_counter())


def tracked(setups: Setups, config: dict[str, Any], steps: int) -> float:
    """Seconds per step of the second epoch of a run."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        trackers = Trackers([JsonLines(), Terminal(), *chosen(config), clock])
        trial = Trial(setups.of(config), config, Path(folder), trackers, stop)
        fit([trial], Path(folder), test=False)
    return (clock.ends[1] - clock.ends[0]) / steps


def bare(setups: Setups, config: dict[str, Any], steps: int) -> Callable[[], float]:
    """Measure seconds per step of the bare step."""
    setup, key = setups.of(config), root_key(0)
    experiment, hparams = setup.experiment, setup.inputs_of(config)
    step = jax.jit(functools.partial(experiment.train_step, measured=False), donate_argnums=0)
    size, arrays = setup.batch_size, setup.splits.train.arrays
    batches = [
        jax.device_put({name: a[i * size : (i + 1) * size] for name, a in arrays.items()})
        for i in range(min(BATCHES, steps))
    ]
    state = jax.device_put(experiment.init(hparams, key))

    def run(count: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for index in range(count):
            state, metrics = step(state, batches[index % len(batches)], hparams, key)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / count

    run(1)  # compiles
    return lambda: run(steps)


def config_for(name: str, steps: int, quick: bool) -> dict[str, Any]:
    """The config of a case with epochs of so many steps."""
    case = sized(CASES[name], quick)
    own = [
        f"data.limit={steps * case.batch_size}",
        "trainer.epochs=2",
        "trainer.keep_every=1",
        "trainer.figures=false",
        "trainer.eval_batches=1",
        "data.eval_batch_size=1",
        "logger.mode=offline",
    ]
    return on_noise(case.config, case.batch_size, *own)


def main() -> None:
    what, name, quick = sys.argv[1], sys.argv[2], "--quick" in sys.argv
    if what == "time":
        pairs, steps = int(sys.argv[3]), int(sys.argv[4])
        setups, config = Setups(), config_for(name, steps, quick)
        run = bare(setups, config, steps)
        tracked(setups, config, steps)  # compiles
        print(json.dumps(alternate(lambda: tracked(setups, config, steps), run, pairs)))
        return
    steps, side = int(sys.argv[3]), sys.argv[4]
    setups, config = Setups(), config_for(name, steps, quick)
    if side == "ours":
        tracked(setups, config, steps)
    else:
        bare(setups, config, steps)()
    data = sum(array.nbytes for array in setups.of(config).splits.train.arrays.values())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    print(json.dumps([most, data / 2**20]))


if __name__ == "__main__":
    main()
