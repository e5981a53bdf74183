"""A process uses what its job or its container was given, and gives back what it is done with."""

import ast
import contextlib
import ctypes
import os
import platform
import stat
import sys
from pathlib import Path

import jax
import pytest

from experiments import machine
from experiments.ops import library
from experiments.search import local
from experiments.training.runtime import set_up_compiler
from support import ROOT

PIECE, PIECES = 4096, 25_000


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A control group with two cores and a gigabyte, three quarters of it held, a half in files."""
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**28}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**29}\n")
    monkeypatch.setattr(machine, "_limits", lambda name: [tmp_path / name])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return tmp_path


def test_programs_are_read_from_no_folder_that_others_write(
    tmp_path, monkeypatch, caplog, own_cache
):
    def cache_at(path: Path) -> Path | None:
        set_up_compiler(str(path))
        found = jax.config.values["jax_compilation_cache_dir"]
        return found and Path(found)

    before = os.umask(0)
    try:
        new = tmp_path / "new" / "xla"
        assert cache_at(new) == new
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new.parent, new)] == [0o700] * 2
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    assert cache_at(open_to_all) == open_to_all
    (open_to_all / "program").touch()
    (open_to_all / "program").chmod(0o666)
    assert cache_at(open_to_all) is None
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert cache_at(shared / "xla") == shared / "xla"  # as in /tmp, where others take nothing away
    shared.chmod(0o777)
    for path in (shared, shared / "xla"):
        caplog.clear()
        assert cache_at(path) is None
        assert f"no compilation cache: {shared} can be written by others" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    with pytest.raises(PermissionError, match="can be written by others"):
        library._compiled()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_programs_are_read_from_no_folder_of_another_user(tmp_path):
    os.chown(tmp_path, 65534, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        machine.private_folder(tmp_path)


def test_a_quota_counts_as_so_many_cores(job):
    assert machine.cores() == 2
    (job / "cpu.max").write_text("50000 100000\n")
    assert machine.cores() == 1
    (job / "cpu.max").write_text("max 100000\n")
    assert machine.cores() == 64


def test_free_memory_is_that_of_the_job(job):
    assert machine.free_memory() == 3 * 2**28
    (job / "memory.max").write_text("max\n")
    assert machine.free_memory() > 2**20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc_trim")
def test_freed_pieces_below_one_in_use_go_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(PIECE) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[:-1]:
        libc.free(piece)
    before = resident()
    machine.return_freed_memory()
    assert before - resident() > 0.8 * PIECE * PIECES
    libc.free(pieces[-1])


def test_other_systems_have_a_way_round(monkeypatch, tmp_path):
    """macOS has no /proc, binds no process to cores, and no C library of GNU's."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(library, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "PROGRAM", None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 6
    assert machine.free_memory() > 2**20
    assert machine.processor()
    library.features.cache_clear()
    assert library.features() <= {"asimd"}
    library.features.cache_clear()
    machine.return_freed_memory()
    read = "import sys; sys.stdin.read()"
    monkeypatch.setattr(local.configs, "arguments", list)
    worker = local.Process([sys.executable, "-c", read], slot=1, count=2)
    worker.communicate(b"", timeout=20)
    assert worker.returncode == 0


def test_a_machine_that_is_no_linux_is_described_too(tmp_path, monkeypatch):
    """As macOS, which has no /proc, no affinity of processes, and another C library."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "none")
    monkeypatch.setattr(machine, "PROGRAM", None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.cores() == os.cpu_count()
    assert machine.processor() != ""
    assert machine.free_memory() > 2**28
    machine.return_freed_memory()


def test_several_may_write_a_file_at_once_and_each_writes_it_whole(tmp_path):
    path = tmp_path / "file"
    with machine.whole(path) as mine, machine.whole(path) as other:
        mine.write_text("mine")
        other.write_text("other's")
    assert path.read_text() == "mine"  # its block ended last
    with contextlib.suppress(KeyboardInterrupt), machine.whole(path) as new:
        new.write_text("a part")
        raise KeyboardInterrupt
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


def test_nothing_is_written_but_whole():
    """What is opened, such as a file that grows line by line, has a way of its own."""
    called = {
        (str(path.relative_to(ROOT)), node.func.attr)
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {
        (path, name) for path, name in called if name in {"write_text", "write_bytes", "savefig"}
    } == {
        ("src/experiments/machine.py", "write_bytes"),  # in `write_whole`
        ("src/experiments/viz/drawing.py", "savefig"),  # into memory
    }
