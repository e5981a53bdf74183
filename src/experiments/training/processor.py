"""The processor and its memory, as far as this process may use them."""

import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")  # of Linux, version 2


def cores() -> int:
    """How many cores there are: by this process's affinity and the quota of its container."""
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    count = len(bound) or os.cpu_count() or 1
    for quota in _limits("cpu.max"):  # microseconds of processor time, in each so many
        given, period = quota.read_text().split()
        if given != "max":
            count = min(count, max(1, int(given) // int(period)))
    return count


def free_memory() -> int:
    """Bytes that can be had: of the machine, and below the limits of a container or a job."""
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


def _limits(name: str) -> Iterator[Path]:
    """The files of this name in the control groups that this process is in, innermost first."""
    told = Path("/proc/self/cgroup")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("0::"):
            own = CONTROL_GROUPS / line.removeprefix("0::").lstrip("/")
            groups = [own, *own.parents]
            groups = groups[: groups.index(CONTROL_GROUPS) + 1] if CONTROL_GROUPS in groups else []
            yield from (group / name for group in groups if (group / name).exists())
