"""Workers as processes of this machine, which share its cores and GPUs.

This module imports nothing that takes long: workers start before their study is planned. They
import JAX meanwhile, which their launcher has no need of: what takes JAX to say it asks of one.
"""

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError
from experiments.search.options import Options, worker_count

if TYPE_CHECKING:
    from experiments.search.configs import Configs
    from experiments.search.study import Study

LOGS = "workers"  # the folder of what they print, in that of a study
POLL, LOOK = 0.01, 0.5  # seconds between looks at the processes, and at the study
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# what jaxlib reads for the share of a GPU's memory that a process takes, and its name of before
MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclass(frozen=True)
class Process:
    """A worker process; `slot` says which share of the machine is its own."""

    name: str
    slot: int
    popen: subprocess.Popen

    def ask(self, question: "Question") -> Any:
        """Its answer.

        Raises:
            EOFError: it has ended.
        """
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.write(pickle.dumps(question))
            self.popen.stdin.flush()
        return pickle.load(self.popen.stdout)

    def begin(self, study: "Study") -> None:
        """Tells it which study it is to work on; from then on it prints into its log."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        (study.folder / LOGS).mkdir(exist_ok=True)
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen to later
            self.popen.stdin.write(pickle.dumps((study.folder, study.configs)))
            self.popen.stdin.close()


@dataclass(frozen=True)
class Question:
    """A call that a worker is to make for its launcher."""

    function: Callable[..., Any]
    arguments: tuple


def orders() -> "tuple[Path, Configs] | None":
    """The study that the launcher of this worker has it work on, once its questions are answered.

    None if there is to be no study. Whatever is printed meanwhile goes to standard error, as
    standard output is for the answers.
    """
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        importlib.import_module("experiments.search.worker")
        while True:
            try:
                order = pickle.load(sys.stdin.buffer)
            except (EOFError, pickle.UnpicklingError):
                return None
            if not isinstance(order, Question):
                return order
            try:
                answer = order.function(*order.arguments)
            except UserError as error:
                answer = error
            except Exception:  # the launcher meets it again, and says where
                return None
            with contextlib.suppress(BrokenPipeError):  # the launcher has ended
                answers.write(pickle.dumps(answer))


class Crew:
    """`count` workers, which start at once and import what they need while a study is planned.

    They end with the `with` block at the latest.

    Args:
      sweep: the path of `sweep.py`.
    """

    def __init__(self, count: int, sweep: Path):
        self.count, self.sweep = count, sweep
        self.running = [self._start(slot) for slot in range(count)]

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.popen.kill()
            process.popen.wait()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, or raises of `UserError`, in a worker."""
        process = self.running[0]
        try:
            answer = process.ask(Question(function, arguments))
        except (EOFError, pickle.UnpicklingError):  # it has ended
            process.popen.kill()
            process.popen.wait()
            self.running[0] = self._start(process.slot)
            return function(*arguments)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def work(self, study: "Study", look: Callable[[], None]) -> bool:
        """Works until the study is complete or the workers stop; returns whether it was asked.

        `look` is called about twice a second. A worker that was killed loses its trials to the
        others at once and is replaced. On Ctrl-C, SIGTERM or SIGHUP the workers save their trials
        and end; on the second Ctrl-C they are killed.
        """
        with stopping(self.running) as asked:
            for process in self.running:
                process.begin(study)
            looked = time.monotonic()
            while self.running:
                time.sleep(POLL)
                if time.monotonic() - looked > LOOK:
                    look()
                    looked = time.monotonic()
                for process in [p for p in self.running if p.popen.poll() is not None]:
                    self.running.remove(process)
                    if process.popen.returncode >= 0:  # it has put its trials in order itself
                        continue
                    worked = study.claims.bury(process.name)
                    if worked and not asked() and not study.complete:
                        self.running.append(self._start(process.slot))
                        self.running[-1].begin(study)
        return asked()

    def _start(self, slot: int) -> Process:
        """Starts a worker on its share of the cores and GPUs."""
        name = f"local-{slot}-{uuid.uuid4().hex[:6]}"
        popen = subprocess.Popen(
            [sys.executable, str(self.sweep), "worker=-", f"name={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(slot, self.count),
            start_new_session=True,  # Ctrl-C in the terminal is for the launcher alone
        )
        if hasattr(os, "sched_setaffinity"):  # macOS divides its cores itself
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(popen.pid, core_share(slot, self.count))
        return Process(name, slot, popen)


_ahead: Crew | None = None  # workers that started before it was known what for


@contextlib.contextmanager
def workers_ahead(options: Options, config_folder: Path) -> Iterator[None]:
    """Within it the crew that `standing_by` will be asked for has started."""
    global _ahead
    with standing_by(options, config_folder) as _ahead:
        try:
            yield
        finally:
            _ahead = None


def standing_by(
    options: Options, config_folder: Path, cluster: str = "local"
) -> AbstractContextManager[Crew | None]:
    """The workers of this machine; None where they are to run on a cluster.

    Args:
      cluster: where they run unless the options say otherwise.
    """
    if _ahead is not None:
        return contextlib.nullcontext(_ahead)
    if options.get("cluster", {}).get("name", cluster) != "local":
        return contextlib.nullcontext()
    return Crew(worker_count(options), config_folder.parent / "sweep.py")


def core_share(slot: int, count: int) -> set[int]:
    """The cores of one of `count` workers; XLA makes as many threads as it may use cores."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[slot::count]) or {cores[slot % len(cores)]}


def environment(slot: int, count: int) -> dict[str, str]:
    """The environment of one of `count` workers, in which it has one GPU, or its part of one.

    What is set of the memory that all of them may take is divided among those that share a GPU.
    """
    own = dict(os.environ)
    gpus = visible_gpus()
    if not gpus:
        return own
    own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    sharing = -(-count // len(gpus))
    if sharing > 1:
        given = [own.pop(name, None) for name in MEMORY]  # jaxlib refuses both at once
        share = float(next(filter(None, given), 0.9)) / sharing
        own[MEMORY[0]] = f"{share:.3f}"
    return own


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


def last_words(study: "Study") -> str | None:
    """The last line of a worker that ended with an error."""
    logs = sorted((study.folder / LOGS).glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text().strip().splitlines() if logs else []
    return lines[-1] if lines else None
