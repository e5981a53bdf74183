"""The machine: its processor and memory as far as this process may use them, folders, signals."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

CONTROL_GROUPS = Path("/sys/fs/cgroup")  # of Linux, version 2
GARBAGE_USUALLY = gc.get_threshold()
GARBAGE_SELDOM = (100_000, 50, 100)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


INTERRUPTED = b"\ninterrupted\n"


def end_on_signals() -> dict[int, Any]:
    """Have signals end the process until a training, which saves first, takes them over.

    An exception from a handler would not do: in the middle of an import it can crash a library.

    Returns:
        The handlers that were replaced, by signal.
    """
    usual = (signal.SIG_DFL, signal.default_int_handler)
    now = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    return {n: signal.signal(n, _end) for n, handler in now.items() if handler in usual}


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, INTERRUPTED)
    os._exit(130)


class StopRequest:
    """While entered, a signal sets `name` and the training stops at the next step.

    A second Ctrl-C raises `KeyboardInterrupt` at once. `status` is what a trial then ends with.
    """

    status = "interrupted"

    def __init__(self, signals: tuple[int, ...] = STOP_SIGNALS):
        self.name: str | None = None
        self.signals = signals

    def __enter__(self) -> "StopRequest":
        heeded = [n for n in self.signals if signal.getsignal(n) != signal.SIG_IGN]  # not by nohup
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def user_cache() -> Path:
    """Return this project's folder for what can be made again: programs, decoded pictures."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "experiments"


def cores() -> int:
    """Return the number of cores, by this process's affinity and the quota of its container."""
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    count = len(bound) or os.cpu_count() or 1
    for quota in _limits("cpu.max"):  # microseconds of processor time per period
        given, period = quota.read_text().split()
        if given != "max":
            count = min(count, max(1, int(given) // int(period)))
    return count


def free_memory() -> int:
    """Return the bytes that can be had: of the machine, and below the limits of a container."""
    described = Path("/proc/meminfo")
    if not described.exists():  # macOS does not say; half of all, at a guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":") for line in described.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit in _limits("memory.max"):
        if (most := limit.read_text().strip()) == "max":
            continue
        held = int(limit.with_name("memory.current").read_text())
        counts = limit.with_name("memory.stat").read_text().splitlines()
        files = int(dict(line.split() for line in counts).get("inactive_file", 0))  # not in use
        free = min(free, int(most) - held + files)
    return max(free, 0)


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where glibc is the C library.

    It keeps freed memory for later requests, in pieces that are too small for large arrays: after
    compiling a deep network as much as its training state.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def collect_garbage_seldom() -> None:
    """Have Python look for cycles seldom: what a program makes as it starts stays anyway."""
    gc.set_threshold(*GARBAGE_SELDOM)


def collect_garbage_as_usual() -> None:
    """Have Python look for cycles as often as ever: they may hold the memory of a device."""
    gc.set_threshold(*GARBAGE_USUALLY)


def _limits(name: str) -> Iterator[Path]:
    """Yield the files of this name in the process's control groups, innermost first."""
    membership = Path("/proc/self/cgroup")
    for line in membership.read_text().splitlines() if membership.exists() else ():
        if line.startswith("0::"):
            own = CONTROL_GROUPS / line.removeprefix("0::").lstrip("/")
            groups = [own, *own.parents]
            groups = groups[: groups.index(CONTROL_GROUPS) + 1] if CONTROL_GROUPS in groups else []
            yield from (group / name for group in groups if (group / name).exists())
