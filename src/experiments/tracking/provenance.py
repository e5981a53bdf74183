"""Where a run comes from: `provenance.json` in its folder, with an entry for each of its starts.

    command, directory, time, step    how it was started, and the step that it went on from
    code                              of each repository the commit, and what differs from it
    packages, python, environment     what it was computed with
    host, processor, devices          what it was computed on
    products                          the precision of its matrix products of float32
    data                              the fingerprint of its data

The code is that of the working directory, of the user's own config files, and of this package where
it is a checkout. What differs from the commit is a patch below `patches/`, which is named by its
content; files that git does not know are named alone.
"""

import functools
import hashlib
import os
import platform
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from experiments.core import trust
from experiments.errors import UserError, masked
from experiments.machine import (
    CONFIG,
    PACKAGE,
    command_line,
    cores,
    packages,
    processor,
    write_whole,
)
from experiments.tracking.jsonl import read_mapping, write_json

FILE = "provenance.json"
PATCHES = "patches"
MOST = 2**20  # bytes of a patch
NAMED = 100  # most files in a list
SECONDS = 20.0  # that git may take
BRIEF = ("time", "command", "directory", "host", "processor", "devices", "python", "data")
VARIABLES = (
    *("CUDA_", "HIP_", "JAX_", "NCCL_", "OMP_", "PYTHON", "ROCR_", "SLURM_JOB_ID", "TFDS_", "XLA_"),
)
DIFFERENCE = (
    *("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/", "HEAD"),
)


class Process(NamedTuple):
    """What all runs of a process have in common: fields of an entry, and patches by file name."""

    fields: dict[str, Any]
    patches: dict[str, bytes]


def begin() -> Future[Process]:
    """Find out, in the background, what there is to say of this process; once for each folder."""
    return _begun(Path.cwd(), trust.own_folders())


def record(folder: Path, **fields: Any) -> None:
    """Add an entry to a run folder; `fields` are those of the run itself."""
    path, process = folder / FILE, begin().result()
    starts = read_starts(folder)
    # which an earlier run of the process, as in a notebook, may have begun without
    own = {**fields, **process.fields, "environment": environment()}
    write_json(path, {"starts": [*starts, {"time": _now(), **own}]})
    if process.patches:
        (folder / PATCHES).mkdir(exist_ok=True)
    for name, patch in process.patches.items():
        write_whole(folder / PATCHES / name, patch)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run folder, the oldest first; none of a run of an older version.

    Raises:
        UserError: the file is damaged.
    """
    path, advice = folder / FILE, "delete it: the run then says nothing of its earlier starts"
    if not path.is_file():
        return []
    starts = read_mapping(path, advice=advice).get("starts")
    known = {"code", "packages", *BRIEF}
    if not isinstance(starts, list) or not all(known <= {*start} for start in starts):
        raise UserError(f"{path} is damaged: it has no list of starts\n{advice}")
    return starts


def in_brief(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without what is long: its packages and its environment."""
    code = ", ".join(map(code_in_brief, start["code"])) or "of no commit"
    return {"code": code} | {name: start[name] for name in BRIEF}


def code_in_brief(code: Mapping[str, Any]) -> str:
    """Return the state of a repository in a few words."""
    count = len(code["changed"])
    differing = f" and {count} changed file{'s' if count > 1 else ''}" if count else ""
    return f"{Path(code['folder']).name} at {code['commit'][:12]}{differing}"


def name_of_patch(patch: bytes) -> str:
    """Return the name of the file of a patch."""
    return f"{hashlib.sha256(patch).hexdigest()[:16]}.patch"


@functools.cache
def _begun(here: Path, own: tuple[Path, ...]) -> Future[Process]:
    return ThreadPoolExecutor(1, thread_name_prefix="provenance").submit(_process, here, own)


def _process(here: Path, own: tuple[Path, ...]) -> Process:
    checkout = [CONFIG.parent] if CONFIG.parent != PACKAGE else []
    known: dict[str, dict[str, Any]] = {}
    patches: dict[str, bytes] = {}
    for folder in (here, *(own for own in own if own != CONFIG), *checkout):
        found = _git(folder, "rev-parse", "--show-toplevel", "HEAD")
        if found and (top := os.fsdecode(found).splitlines()[0]) not in known:
            known[top] = _repository(Path(top), os.fsdecode(found).splitlines()[1], patches)
    fields = {
        "command": command_line(),
        "directory": str(here),
        "code": list(known.values()),
        "host": socket.gethostname(),
        "processor": f"{processor()}, {cores()} cores",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": packages(),
    }
    return Process(fields, patches)


def _repository(folder: Path, commit: str, patches: dict[str, bytes]) -> dict[str, Any]:
    """Describe the state of a repository; its difference to the commit joins the patches."""
    status = _git(folder, "status", "--porcelain", "-z", "--no-renames")
    unknown = b" M what git did not say in time"
    lines = [os.fsdecode(line) for line in (unknown if status is None else status).split(b"\0")]
    untracked = [line[3:] for line in lines if line.startswith("??")]
    changed = [line[3:] for line in lines if line and not line.startswith("??")]
    patch, name = _git(folder, *DIFFERENCE) if changed else None, None
    if patch and len(patch) <= MOST:
        name = name_of_patch(patch)
        patches[name] = patch
    return {
        "folder": str(folder),
        "commit": commit,
        "changed": _some(changed),
        "patch": name and f"{PATCHES}/{name}",
        "untracked": _some(untracked),
    }


def _some(names: list[str]) -> list[str]:
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return names[:NAMED] + more


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Return what git says of a folder, cut off where it is more than a patch may be.

    None without git, a repository, a commit or an answer in time.
    """
    # a repository's config may name a program that is run at every look: not by this one
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    own = environment_of_git() | {"GIT_OPTIONAL_LOCKS": "0"}
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdout=pipe, stderr=nowhere, env=own)
    except OSError:
        return None
    alarm = threading.Timer(SECONDS, process.kill)
    alarm.start()
    with process:
        assert process.stdout
        said = process.stdout.read(MOST + 1)
        if len(said) > MOST:
            process.kill()
    alarm.cancel()
    return said if process.returncode == 0 or len(said) > MOST else None


def environment_of_git() -> dict[str, str]:
    """Return the environment without what tells git, as in a hook, to look elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def environment() -> dict[str, str]:
    """Return the variables that change what is computed, and how."""
    given = {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)}
    return {name: masked(f"{name}={value}").partition("=")[2] for name, value in given.items()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
