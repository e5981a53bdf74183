import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.data.prepared import find
from experiments.data.tfds_images import TfdsImages

# Fails on any attempt to use the network, or TensorFlow.
OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("the network was used")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from pathlib import Path
from experiments.data import digits
digits.prepare(Path(sys.argv[1]))
assert "tensorflow" not in sys.modules
"""


def prepare_offline(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", OFFLINE, str(folder)])


def test_prepares_in_seconds_without_network_or_tensorflow(tmp_path: Path):
    started = time.monotonic()
    both = [prepare_offline(tmp_path), prepare_offline(tmp_path)]  # at once
    assert [process.wait() for process in both] == [0, 0]
    assert time.monotonic() - started < 20
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    prepared = find("digits", None, tmp_path)
    assert prepared is not None
    assert prepared.image_shape == (8, 8, 1)
    assert prepared.class_names == tuple("0123456789")
    assert [prepared.num_examples(split) for split in ("train", "test")] == [1437, 360]


def test_equal_scikit_learn(data_dir: Path):
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    from experiments.data.digits import read_raw

    images, labels = read_raw()
    np.testing.assert_array_equal(np.rint(images * (16 / 255)), digits.images)
    np.testing.assert_array_equal(labels, digits.target)

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        table = np.column_stack([images.reshape(len(labels), -1), labels])
        return sorted(row.tobytes() for row in table.astype(np.int32))

    splits = TfdsImages(name="digits").load()  # prepares them
    parts = [splits.train.arrays, splits.validation.arrays]
    train = [np.concatenate([part[name] for part in parts]) for name in ("image", "label")]
    assert rows(*train) == rows(images[:1437], labels[:1437])
    assert rows(*splits.test.arrays.values()) == rows(images[1437:], labels[1437:])


def test_go_to_the_cache_and_leave_the_data_folder_alone(tmp_path: Path):
    folder, own = tmp_path / "data", tmp_path / "own"
    folder.mkdir()
    data = TfdsImages(name="digits", dir=str(folder), cache_dir=str(own))
    assert len(data.load().test) == 360
    assert (own / "tensorflow_datasets" / "digits").is_dir()
    assert not list(folder.iterdir())


def test_go_to_the_data_folder_where_the_cache_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    data = TfdsImages(name="digits", dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "file"))
    assert len(data.load().test) == 360
    assert (tmp_path / "data" / "digits").is_dir()
