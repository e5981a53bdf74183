"""Workers as processes of this machine, which share its cores and GPUs.

This module imports nothing that takes long: workers start, and import JAX, while their launcher
still plans the study.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from experiments.core.config import mismatch
from experiments.errors import UserError
from experiments.machine import StopRequest, command, launched_here
from experiments.processes.gpus import environment, visible
from experiments.search import configs
from experiments.types import PositiveInt

if TYPE_CHECKING:
    from experiments.search.configs import Configs
    from experiments.search.study import Study

LOGS = "workers"  # in the folder of the study: the text that they print
POLL, LOOK = 0.01, 0.5  # seconds between looks at the processes, and at the study
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Process(subprocess.Popen):
    """A worker process on its share of the cores and GPUs: number `slot` of `count` shares.

    `gpus` are those of each.
    """

    def __init__(self, sweep: Sequence[str], slot: int, count: int, gpus: int = 1):
        self.name, self.slot = f"local-{slot}-{uuid.uuid4().hex[:6]}", slot
        super().__init__(
            [*sweep, "worker=-", f"name={self.name}", *configs.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(slot, count, gpus) | launched_here(),
            start_new_session=True,  # Ctrl-C in the terminal is for the launcher alone
        )
        if hasattr(os, "sched_setaffinity"):  # macOS divides its cores itself
            cores = sorted(os.sched_getaffinity(0))  # XLA makes as many threads as it may use
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.pid, cores[slot::count] or [cores[slot % len(cores)]])

    def call(self, function: Callable, *arguments: Any) -> Any:
        """Have it call a function before it works; return what that returns or raise its error.

        Raises:
            UserError: that of the function, or the process has ended.
            EOFError: it was killed.
        """
        assert self.stdin is not None
        assert self.stdout is not None
        try:
            pickle.dump((function, arguments), self.stdin)
            self.stdin.flush()
            answer = pickle.load(self.stdout)
        except (BrokenPipeError, EOFError) as error:
            if (code := self.wait()) < 0:
                raise EOFError(self.end) from error
            raise UserError(f"a worker ended as it started, exit code {code}; see above") from error
        if isinstance(answer, UserError):
            raise answer
        return answer

    @property
    def end(self) -> str:
        """Why it has ended: what it said in `tell`, or the signal or code that it ended with."""
        assert self.stdout is not None
        if self.returncode < 0:
            return f"killed by signal {-self.returncode} ({signal.strsignal(-self.returncode)})"
        return self.stdout.read().decode(errors="replace") or f"exit code {self.returncode}"

    def begin(self, study: "Study") -> None:
        """Name it the study to work on, for which it waits in `wait_for_study`."""
        assert self.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is noticed later
            pickle.dump((None, (study.folder, study.configs)), self.stdin)
            self.stdin.close()


def wait_for_study(name: str) -> "tuple[Path, Configs] | None":
    """Call what the launcher of this worker asks for, until it names a study, or None if it ends.

    From then on this process prints into the log of the worker `name`.
    """
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return None
        if function is None:
            break
        try:
            answer = function(*arguments)
        except UserError as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    global _launcher
    _launcher = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    folder, composed = arguments
    with (folder / LOGS / f"{name}.log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    return folder, composed


def tell(reason: str) -> None:
    """Tell the launcher of this worker, if it has one, why it ends; the disk may be full."""
    if _launcher is not None:
        with contextlib.suppress(OSError):
            _launcher.write(reason)
            _launcher.flush()


class Workers:
    """`count` workers of `gpus` GPUs, which start at once as processes of the program `sweep`."""

    def __init__(self, count: int, sweep: Sequence[str] | None = None, gpus: int = 1):
        self.count, self.gpus, self.sweep = count, gpus, sweep or command("sweep")
        self.running = [Process(self.sweep, slot, count, gpus) for slot in range(count)]
        self.in_vain = [0] * count  # deaths of each before it began a trial
        self.reasons: list[str] = []  # for which some have ended before the study did

    def work(self, study: "Study", look: Callable[[], None]) -> bool:
        """Work until the study is complete or the workers stop; return whether a signal came.

        `look` is called about twice a second. A worker that was killed loses its trials to the
        others at once and is replaced, unless it has died in vain as often as it may at one trial.
        On Ctrl-C, SIGTERM or SIGHUP the workers save their trials and end; on the second Ctrl-C
        they are killed.
        """
        (study.folder / LOGS).mkdir(exist_ok=True)
        looked, passed_on = time.monotonic(), False
        with StopRequest(SIGNALS) as stop:
            for process in self.running:
                process.begin(study)
            while self.running:
                time.sleep(POLL)
                if stop.name is not None and not passed_on:
                    passed_on = True
                    for process in self.running:
                        process.send_signal(signal.Signals[stop.name])
                if time.monotonic() - looked > LOOK:
                    look()
                    looked = time.monotonic()
                for process in [p for p in self.running if p.poll() is not None]:
                    self.running.remove(process)
                    if process.returncode:
                        self.reasons.append(process.end)
                    if process.returncode < 0 and stop.name is None:
                        self._replace(process, study)
        return stop.name is not None

    def _replace(self, process: Process, study: "Study") -> None:
        """Free the trials of a worker that was killed, and start another one."""
        (study.folder / LOGS / f"{process.name}.json").unlink(missing_ok=True)
        freed = study.claims.free_claims_of(process.name)
        what = [f"trial {key}" if key.isdigit() else "the test of the winner" for key in freed]
        during = f"during {', '.join(what)}, which goes on" if what else "before it began a trial"
        print(f"worker {process.name} was {process.end} {during}", flush=True)
        self.in_vain[process.slot] = 0 if freed else self.in_vain[process.slot] + 1
        if self.in_vain[process.slot] < study.plan.attempts and not study.complete:
            self.running.append(Process(self.sweep, process.slot, self.count, self.gpus))
            self.running[-1].begin(study)


_standing_by: Workers | None = None
_launcher: TextIO | None = None  # of this process, if that is a worker


def where_jax_is(function: Callable, *arguments: Any) -> Any:
    """Call a function that imports JAX: in a worker that stands by, if there is one, else here.

    To import JAX beside the workers would take the processor from them for a second.
    """
    if _standing_by is not None:
        with contextlib.suppress(EOFError):  # it was killed, and will be replaced
            return _standing_by.running[0].call(function, *arguments)
    return function(*arguments)


@contextlib.contextmanager
def standing_by(options: Mapping[str, Any], cluster: str = "local") -> Iterator[Workers | None]:
    """Start the workers of this machine for the block; a block within it is given the same ones.

    None start unless the cluster is `local`: that of the options, else `cluster`.
    """
    global _standing_by
    local = options.get("cluster", {}).get("name", cluster) == "local"
    if _standing_by is not None or not local:
        yield _standing_by
        return
    workers = _standing_by = Workers(worker_count(options), gpus=gpus_per_worker(options))
    try:
        yield workers
    finally:
        _standing_by = None
        for process in workers.running:
            process.kill()
            process.wait()


def worker_count(options: Mapping[str, Any]) -> int:
    """Return the number of workers that the options ask for; `auto` makes use of each GPU once."""
    count, each = options.get("workers", 1), gpus_per_worker(options)
    if count == "auto":
        if options.get("cluster", {}).get("name", "local") != "local":
            raise UserError("workers=auto: goes by the GPUs of this machine; say workers=8")
        return max(len(visible()) // each, 1)
    if complaint := mismatch(count, PositiveInt):
        raise UserError(f"workers={count}: must be auto or {complaint}")
    return count


def check_gpus(wanted: int | None, options: Mapping[str, Any]) -> None:
    """Raise `UserError` if trials want more devices than the GPUs that the options give a worker.

    Args:
      wanted: `trainer.devices` of the trials.
    """
    here = options.get("cluster", {}).get("name", "local") == "local"
    if wanted is not None and here and wanted > (each := gpus_per_worker(options)) and visible():
        raise UserError(
            f"trainer.devices={wanted}: GPUs of each worker: {each}; say gpus_per_worker={wanted}, "
            f"or more for several trials side by side"
        )


def gpus_per_worker(options: Mapping[str, Any]) -> int:
    """Return the number of GPUs that each worker has, where there are any."""
    each = options.get("gpus_per_worker", 1)
    if complaint := mismatch(each, PositiveInt):
        raise UserError(f"gpus_per_worker={each}: must be {complaint}")
    if each > 1 and options.get("cluster", {}).get("name", "local") != "local":
        raise UserError(f"gpus_per_worker={each}: of a cluster say cluster.gpus={each}")
    if each > 1 and each > (there := len(visible())):
        raise UserError(f"gpus_per_worker={each}: JAX may use {there} GPUs of this machine")
    return each
