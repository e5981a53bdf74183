import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.data import cache
from experiments.data.cache import cached

SHAPES = {"image": (5, 2, 2, 1), "label": (5,)}


def make() -> dict[str, np.ndarray]:
    images = np.arange(20, dtype=np.uint8).reshape(SHAPES["image"])
    return {"image": images, "label": np.arange(5, dtype=np.int32)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("decoded again")


def same(arrays: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(arrays[name], array) for name, array in make().items())


def test_makes_once_and_maps_afterwards(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    assert same(cached(folder, make, SHAPES))
    arrays = cached(folder, never, SHAPES)
    assert same(arrays)
    assert isinstance(arrays["image"], np.memmap)
    assert sorted(path.name for path in folder.iterdir()) == ["image.npy", "label.npy"]


@pytest.mark.parametrize("keep", [0, 50, 140])
def test_a_truncated_file_is_made_again(tmp_path: Path, keep: int, caplog):
    folder = tmp_path / "split"
    cached(folder, make, SHAPES)
    path = folder / "image.npy"
    path.write_bytes(path.read_bytes()[:keep])
    assert same(cached(folder, make, SHAPES))
    assert "damaged" in caplog.text
    assert same(cached(folder, never, SHAPES))


def test_a_missing_file_or_another_shape_is_made_again(tmp_path: Path):
    folder = tmp_path / "split"
    cached(folder, make, SHAPES)
    (folder / "label.npy").unlink()
    assert same(cached(folder, make, SHAPES))
    np.save(folder / "label.npy", np.arange(4))
    assert same(cached(folder, make, SHAPES))


def test_an_unwritable_folder_is_only_a_warning(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("")  # a folder cannot be made under a file, not even by root
    with caplog.at_level(logging.WARNING):
        assert same(cached(tmp_path / "file" / "split", make, SHAPES))
    assert "Cannot cache decoded data" in caplog.text


def test_a_full_disk_is_only_a_warning(tmp_path: Path, monkeypatch, caplog):
    def full(path: Path, array: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    assert same(cached(tmp_path / "split", make, SHAPES))
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "split").iterdir()) == []


def test_many_at_once_all_get_the_data(tmp_path: Path):
    """Threads race within one process, and two processes with them."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "import test_cache as t\n"
        "for _ in range(20): assert t.same(t.cached(Path(sys.argv[1]), t.make, t.SHAPES))"
    )
    folder = tmp_path / "split"
    command = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)]
    others = [subprocess.Popen(command) for _ in range(2)]
    results: list[bool] = []

    def race() -> None:
        for _ in range(20):
            cache._store(folder, make())
            results.append(same(cached(folder, make, SHAPES)))

    thread = threading.Thread(target=race)
    thread.start()
    thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert results == [True] * 20
