"""The machine: its processor and memory as far as this process may use them, folders, processes."""

import contextlib
import ctypes
import errno
import gc
import os
import re
import resource
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.errors import causes, masked

# modules that take long are imported where they are used: Ctrl-C is heeded once this one is

PACKAGE = Path(__file__).resolve().parent  # installed it holds conf/ itself, in a checkout not
CONFIG = next(path for path in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if path.is_dir())
PROC = Path("/proc")  # of Linux
CONTROL_GROUPS = Path("/sys/fs/cgroup")  # of Linux, version 2
GARBAGE_USUALLY = gc.get_threshold()
GARBAGE_SELDOM = (100_000, 50, 100)
PARENT = "EXPERIMENTS_PARENT"  # the process whose child the program that starts is
COMMAND = "EXPERIMENTS_COMMAND"  # the command of the user's that it is started for
FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO, errno.ENODEV),
)
PROC = Path("/proc")  # of Linux; elsewhere there is none
# opened before there are threads: to open it takes the lock of the dynamic linker, under the GIL,
# which a module that another thread imports may be waiting for while it has that lock
PROGRAM = ctypes.CDLL(None) if sys.platform == "linux" else None
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

    @property
    def cause(self) -> str | None:
        """The signal, in the words of who sent it."""
        return "Ctrl-C" if self.name == "SIGINT" else self.name

    def __enter__(self) -> "StopRequest":
        # only the main thread may; signals that are ignored, as by nohup, stay so
        own = self.signals if threading.current_thread() is threading.main_thread() else ()
        heeded = [number for number in own if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def end_with(parent: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal when its parent has ended, in whatever way, or has by now.

    A thread looks every second: Linux's own signal for it comes when the parent's thread that
    started this process ends.
    """

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), number)

    threading.Thread(target=follow, daemon=True).start()


def end_with_launcher() -> None:
    """Have a program end, after it has saved, with the one that started it by `launched_here`."""
    if parent := os.environ.pop(PARENT, None):
        end_with(int(parent))


def launched_here() -> dict[str, str]:
    """Return what the environment of a program must hold for it to end with this process."""
    return {PARENT: str(os.getpid()), COMMAND: command_line()}


def command_line() -> str:
    """Return the user's command that this process is of, without secrets."""
    import shlex

    return os.environ.get(COMMAND) or masked(shlex.join(sys.orig_argv))


def fault_of(error: BaseException) -> str | None:
    """Return what of the machine made a program fail, such as a full disk; None if nothing did.

    Libraries in C++ raise errors of other classes, with the system's words in their text. Memory
    that runs out in Python is not meant: it may be one model that is too large.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in FAULTS:
            return os.strerror(cause.errno) + (f": {cause.filename}" if cause.filename else "")
        for said in map(os.strerror, FAULTS):
            if said in str(cause):
                return said
    return None


def ensure_home() -> None:
    """Give a user without a home to write into, as in some containers, a folder for caches.

    It is the same for all processes of the user, in the temporary folder: a new one of each would
    stay behind those that are killed, and matplotlib would make one of its own.
    """
    home = os.path.expanduser("~")
    if home != "~" and os.access(home, os.W_OK):
        return
    import tempfile

    folder = private_folder(Path(tempfile.gettempdir()) / f"experiments-{os.geteuid()}")
    if home == "~":
        os.environ["HOME"] = str(folder)
        return
    for variable, usual in (("XDG_CACHE_HOME", ".cache"), ("MPLCONFIGDIR", ".config")):
        if not os.access(Path(home, usual), os.W_OK):
            os.environ.setdefault(variable, str(folder))


def user_cache() -> Path:
    """Return this project's folder for what can be made again: programs, decoded pictures."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "experiments"


def expanded(path: str) -> Path:
    """Return a path with the home of a user in place of `~`, or as it is where there is none."""
    return Path(os.path.expanduser(path))


def write_whole(path: Path, content: str | bytes | bytearray) -> None:
    """Write a file; a reader finds the old one or the new one, never a part."""
    with whole(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file; it takes the place of `path` at the end of the block.

    Several processes may do so at once. What the block leaves with an error is removed.
    """
    import uuid

    new = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield new
        new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what killed processes were writing in `folder`, in which nobody else writes."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.[0-9a-f]{8}\..+", path.name):
            path.unlink(missing_ok=True)


def private_folder(path: Path) -> Path:
    """Return a folder for programs, made where it is not there: what is in it is executed.

    Raises:
        OSError: it cannot be made, or another user can write into it or into a file in it.
    """
    for folder in (*reversed(path.parents), path):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
        if folder == path and found.st_uid != os.geteuid():
            raise PermissionError(f"{folder} belongs to another user")
        if _others_write(found) and (folder == path or not found.st_mode & stat.S_ISVTX):
            raise PermissionError(f"{folder} can be written by others; remove it, or chmod go-w it")
    if path.is_relative_to(user_cache()):
        path.chmod(0o700)  # one of an older version may be open
    for entry in os.scandir(path) if found.st_mode & 0o011 else ():  # where others can enter
        if _others_write(entry.stat(follow_symlinks=False)):
            raise PermissionError(f"{entry.path} can be written by others; remove it")
    return path


def _others_write(found: os.stat_result) -> bool:
    """Return whether more than one user can write; on many systems each has a group alone."""
    import grp
    import pwd

    with contextlib.suppress(KeyError):  # a user or a group without a name
        if grp.getgrgid(found.st_gid).gr_name == pwd.getpwuid(os.geteuid()).pw_name:
            return bool(found.st_mode & stat.S_IWOTH)
    return bool(found.st_mode & (stat.S_IWOTH | stat.S_IWGRP))


def cores() -> int:
    """Return the number of cores, by this process's affinity and the quota of its container."""
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    count = len(bound) or os.cpu_count() or 1
    for quota in _limits("cpu.max"):  # microseconds of processor time per period
        given, period = quota.read_text().split()
        if given != "max":
            count = min(count, max(1, int(given) // int(period)))
    return count


def processor() -> str:
    """Return the name of the processor."""
    import platform

    described = PROC / "cpuinfo"
    text = described.read_text() if described.exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    name = model.group(1) if model else platform.processor() or platform.machine()
    return " ".join(name.split())


def packages() -> dict[str, str]:
    """Return the version of each installed package, by the names of their folders.

    To read the description of each would take a hundred times as long.
    """
    folders = [path for entry in sys.path for path in Path(entry or ".").glob("*.dist-info")]
    named = (path.stem.rpartition("-") for path in reversed(folders))  # the first one is imported
    return dict(sorted({name: version for name, _, version in named}.items()))


def free_memory() -> int:
    """Return the bytes that can be had: of the machine, and below the limits of a container."""
    described = PROC / "meminfo"
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
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)  # by `ulimit -v`
    if allowed != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        free = min(free, allowed - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(free, 0)


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where glibc is the C library.

    It keeps freed memory for later requests, in pieces that are too small for large arrays: after
    compiling a deep network as much as its training state.
    """
    trim = getattr(PROGRAM, "malloc_trim", None)
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
    membership = PROC / "self" / "cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        if line.startswith("0::"):
            own = CONTROL_GROUPS / line.removeprefix("0::").lstrip("/")
            groups = [own, *own.parents]
            groups = groups[: groups.index(CONTROL_GROUPS) + 1] if CONTROL_GROUPS in groups else []
            yield from (group / name for group in groups if (group / name).exists())


def command(program: str) -> list[str]:
    """Return the beginning of a command that starts a program as a process."""
    # -P: else files in the working directory would come before the libraries of the same names
    return [sys.executable, "-P", "-m", "experiments.cli.command", program]


def called(program: str) -> str:
    """Return the beginning of a command as a user types it in this folder."""
    in_checkout = Path.cwd() == CONFIG.parent
    return f"python {program}.py" if in_checkout else f"experiments {program}"
