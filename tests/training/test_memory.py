"""What this process is done with goes back to the system."""

import ctypes
import platform
from pathlib import Path

import pytest

from experiments.training.memory import give_back

PIECE, PIECES = 4096, 25_000


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
    give_back()
    assert before - resident() > 0.8 * PIECE * PIECES
    libc.free(pieces[-1])


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    give_back()
