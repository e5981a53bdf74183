"""Whole processes: from the command to the help, the first step, or the end of an epoch."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.results import LeftOutError, Pair, Record, alternate, record
from benchmarks.turns import ROOT

NOISE = "data._target_=benchmarks.random_images.RandomImages"
RUN = ["run.py", "model=lenet5"]
HELP_LIMIT = 1.5  # seconds that help may take
COLD_LIMIT, WARM_LIMIT = 6.0, 4.0  # seconds until the first step may be done
OFFLINE = "logger.mode=offline"


def help_text(pairs: int, quick: bool) -> list[Record]:
    """`run.py --help` against its limit."""
    measured = [(_seconds(["run.py", "--help"]), HELP_LIMIT) for _ in range(pairs)]
    compared = ("python run.py --help", "a limit")
    return [record("help", f"limit of {HELP_LIMIT} s", measured, compared)]


def first_step(pairs: int, quick: bool) -> list[Record]:
    """From the command to a first line in metrics.jsonl, first with no compiled program at hand."""
    cold, warm = [], []
    command = [*RUN, "data=digits", "trainer.epochs=1", OFFLINE]
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            cache = f"trainer.compilation_cache={folder}/xla"
            cold.append((_first_line([*command, cache], Path(folder, "cold")), COLD_LIMIT))
            warm.append((_first_line([*command, cache], Path(folder, "warm")), WARM_LIMIT))
    compared = (f"python {' '.join(command)}", "a limit")
    return [
        record(f"first_step_{state}", f"limit of {limit} s", measured, compared)
        for state, limit, measured in (("cold", COLD_LIMIT, cold), ("warm", WARM_LIMIT, warm))
    ]


def lightning_epoch(pairs: int, quick: bool) -> list[Record]:
    """LeNet-5 for an epoch of MNIST: whole process with data, tracking, checkpoint and test.

    Raises:
        LeftOutError: PyTorch Lightning is not installed, or MNIST is not prepared.
    """
    if find_spec("lightning") is None:
        raise LeftOutError("PyTorch Lightning is not installed: pip install -e '.[bench]'")
    data = [NOISE, "data.limit=256"] if quick else []
    ours = [*RUN, "data=mnist", "trainer.epochs=1", OFFLINE, *data]
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "mnist.npz")
        written = [sys.executable, "-m", "benchmarks.images_for_peer", str(images), *data]
        ended = subprocess.run(written, cwd=ROOT, capture_output=True, text=True)
        if ended.returncode:
            raise LeftOutError(ended.stderr.strip().splitlines()[-1])
        peer = ["-m", "benchmarks.peers.lightning_mnist", f"data={images}"]
        number = iter(range(10**6))

        def run_ours() -> float:
            where = f"hydra.run.dir={folder}/ours{next(number)}"
            return _seconds([*ours, where, f"trainer.compilation_cache={folder}/xla"])

        def run_peer() -> float:
            return _seconds([*peer, f"hydra.run.dir={folder}/peer{next(number)}"])

        first = run_ours()  # fills the cache
        measured = alternate(run_ours, run_peer, pairs)
    compared = (f"python {' '.join(ours)}", "python -m benchmarks.peers.lightning_mnist")
    facts = {"ours_seconds_with_an_empty_cache": first}
    return [record("lightning_epoch", "PyTorch Lightning", measured, compared, **facts)]


def tracking(pairs: int, quick: bool) -> list[Record]:
    """The shipped LeNet-5 on MNIST with W&B offline against the same without W&B.

    Once for training and validation, which the run measures itself, and once for whole processes.

    Raises:
        LeftOutError: MNIST is not prepared.
    """
    command = ["run.py", "experiment=lenet5_mnist"]
    if quick:
        command += [NOISE, "data.limit=256", "trainer.epochs=1"]
    taken: dict[str, list[Pair]] = {"training": [], "process": []}
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(10**6))

        def run(mode: str) -> tuple[float, float]:
            where = Path(folder, str(next(number)))
            own = [f"hydra.run.dir={where}", f"trainer.compilation_cache={folder}/xla"]
            seconds = _seconds([*command, f"logger.mode={mode}", *own])
            return json.loads((where / "summary.json").read_text())["seconds"], seconds

        try:
            run("offline")  # fills the cache
        except RuntimeError as error:
            raise LeftOutError("MNIST is not prepared") from error
        for index in range(pairs):
            modes = ("offline", "disabled") if index % 2 else ("disabled", "offline")
            found = {mode: run(mode) for mode in modes}
            for position, measured in enumerate(taken.values()):
                measured.append((found["offline"][position], found["disabled"][position]))
    compared = tuple(f"python {' '.join(command)} logger.mode={m}" for m in ("offline", "disabled"))
    return [
        record(f"tracking_{what}", "no tracking", measured, compared)
        for what, measured in taken.items()
    ]


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    with _running(arguments) as process:
        if process.wait():
            raise RuntimeError(f"{' '.join(arguments)}: exit code {process.returncode}")
        return time.perf_counter() - start


def _first_line(arguments: list[str], folder: Path) -> float:
    """Seconds until the run has written its first line of metrics; it then runs to its end."""
    lines = folder / "metrics.jsonl"
    start = time.perf_counter()
    with _running([*arguments, f"hydra.run.dir={folder}"]) as process:
        while not (lines.exists() and lines.stat().st_size):
            if process.poll():
                raise RuntimeError(f"{' '.join(arguments)}: exit code {process.returncode}")
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        process.wait()
    return seconds


@contextmanager
def _running(arguments: list[str]) -> Iterator[subprocess.Popen]:
    quiet = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()
