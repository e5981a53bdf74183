"""Workers as processes of this machine, which share its cores and GPUs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from experiments.search.study import Study

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Process:
    """A worker process; `slot` says which share of the machine is its own."""

    name: str
    slot: int
    popen: subprocess.Popen


def run_workers(study: Study, count: int, sweep: Path, look: Callable[[], None]) -> bool:
    """Runs `count` workers until the study is complete or they stop; returns whether it was asked.

    `look` is called about twice a second. A worker that was killed loses its trials to the others
    at once and is replaced. On Ctrl-C, SIGTERM or SIGHUP the workers save their trials and end; on
    the second Ctrl-C they are killed.

    Args:
      sweep: the path of `sweep.py`.
    """
    running: list[Process] = []
    with stopping(running) as asked:
        try:
            for slot in range(count):
                running.append(start(study, slot, count, sweep))
            while running:
                time.sleep(0.5)
                look()
                for process in [p for p in running if p.popen.poll() is not None]:
                    running.remove(process)
                    if process.popen.returncode >= 0:  # it has put its trials in order itself
                        continue
                    worked = study.claims.bury(process.name)
                    if worked and not asked() and not study.complete:
                        running.append(start(study, process.slot, count, sweep))
        finally:
            for process in running:
                process.popen.kill()
                process.popen.wait()
    return asked()


def start(study: Study, slot: int, count: int, sweep: Path) -> Process:
    """Starts a worker on its share of the cores and GPUs; it prints into `workers/<name>.log`."""
    name = f"local-{slot}-{uuid.uuid4().hex[:6]}"
    folder = study.folder / "workers"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(sweep), f"worker={study.folder}", f"name={name}"]
    with (folder / f"{name}.log").open("w") as log:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | gpu_share(slot, count),
            start_new_session=True,  # Ctrl-C in the terminal is for the launcher alone
        )
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(popen.pid, core_share(slot, count))
    return Process(name, slot, popen)


def core_share(slot: int, count: int) -> set[int]:
    """The cores of one of `count` workers; XLA makes as many threads as it may use cores."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[slot::count]) or {cores[slot % len(cores)]}


def gpu_share(slot: int, count: int) -> dict[str, str]:
    """The environment that gives a worker one GPU, or its part of one."""
    gpus = visible_gpus()
    if not gpus:
        return {}
    sharing = -(-count // len(gpus))
    part = {} if sharing == 1 else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.3f}"}
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} | part


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


@contextlib.contextmanager
def stopping(running: list[Process]) -> Iterator[Callable[[], bool]]:
    """While entered, a signal to stop is passed on to the workers; yields whether there was one."""
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.popen.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_words(study: Study) -> str | None:
    """The last line of a worker that ended with an error."""
    logs = sorted((study.folder / "workers").glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text().strip().splitlines() if logs else []
    return lines[-1] if lines else None
