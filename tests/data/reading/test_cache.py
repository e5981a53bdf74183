import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.data.reading import cache
from experiments.data.reading.cache import cached


def make() -> dict[str, np.ndarray]:
    images = np.arange(20, dtype=np.uint8).reshape(5, 2, 2, 1)
    return {"image": images, "label": np.arange(5, dtype=np.int32)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("decoded again")


def same(arrays: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(arrays[name], array) for name, array in make().items())


def test_makes_once_and_maps_afterwards(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    assert same(cached(folder, make))
    arrays = cached(folder, never)
    assert same(arrays)
    assert isinstance(arrays["image"], np.memmap)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["crc32.json", "image.npy", "label.npy"]


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "crc32.json"])
def test_damage_anywhere_is_said_and_made_good(tmp_path: Path, name: str, caplog):
    """One bit of a header, of a value or of a digest, or an end that is missing."""
    cached(tmp_path, make)
    path = tmp_path / name
    whole = path.read_bytes()
    ends = [whole[:size] for size in (0, 50, len(whole) - 1) if size < len(whole)]
    for content in [*ends, *(damaged(whole, at) for at in range(0, len(whole), 5))]:
        path.write_bytes(content)
        assert same(cached(tmp_path, make))
        assert path.read_bytes() == whole
    assert same(cached(tmp_path, never))
    assert "cannot be read" in caplog.text


def test_a_missing_file_is_made_again(tmp_path: Path):
    cached(tmp_path, make)
    (tmp_path / "label.npy").unlink()
    assert same(cached(tmp_path, make))


def test_an_unwritable_folder_is_only_a_warning(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("")  # a folder cannot be made under a file, not even by root
    with caplog.at_level(logging.WARNING):
        assert same(cached(tmp_path / "file" / "split", make))
    assert "Cannot cache decoded data" in caplog.text


def test_a_full_disk_is_only_a_warning(tmp_path: Path, monkeypatch, caplog):
    def full(path: Path, array: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    assert same(cached(tmp_path / "split", make))
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "split").iterdir()) == []


def test_many_at_once_all_get_the_data(tmp_path: Path):
    """Threads race within one process, and two processes with them."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "import test_cache as t\n"
        "for _ in range(20): assert t.same(t.cached(Path(sys.argv[1]), t.make))"
    )
    folder = tmp_path / "split"
    command = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)]
    others = [subprocess.Popen(command) for _ in range(2)]
    results: list[bool] = []

    def race() -> None:
        for _ in range(20):
            cache._store(folder, make())
            results.append(same(cached(folder, make)))

    thread = threading.Thread(target=race)
    thread.start()
    thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert results == [True] * 20


def test_processes_that_decode_leave_the_devices_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert list(cache.in_parallel(os.getenv, ["JAX_PLATFORMS"] * 2, 2, "it")) == ["cpu", "cpu"]
