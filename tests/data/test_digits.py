import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data.images import TfdsImages
from experiments.data.reading.prepared import locate

# Fails on any attempt to use the network, TensorFlow or TFDS.
OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("the network was used")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from experiments.data.images import TfdsImages
assert len(TfdsImages(name="digits").load().test) == 360
assert not {"tensorflow", "tensorflow_datasets"} & set(sys.modules)
"""


def test_need_neither_network_nor_tensorflow():
    subprocess.run([sys.executable, "-c", OFFLINE], check=True)


def test_are_shipped_and_leave_the_data_folder_alone(data_dir: Path):
    data_dir.mkdir()
    digits = locate("digits", None, str(data_dir))
    assert digits.picture_shape == (8, 8, 1)
    assert digits.class_names == tuple("0123456789")
    assert [digits.num_examples(split) for split in ("train", "test")] == [1437, 360]
    assert not list(data_dir.iterdir())


def test_equal_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()

    def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
        table = np.column_stack([images.reshape(len(labels), -1), labels])
        return sorted(row.tobytes() for row in table.astype(np.int32))

    splits = TfdsImages(name="digits").load()
    parts = [splits.train.arrays, splits.validation.arrays]
    train = [np.concatenate([part[name] for part in parts]) for name in ("image", "label")]
    stretched = np.rint(digits.images * (255 / 16))
    np.testing.assert_array_equal(np.rint(stretched * (16 / 255)), digits.images)
    assert rows(*train) == rows(stretched[:1437], digits.target[:1437])
    assert rows(*splits.test.arrays.values()) == rows(stretched[1437:], digits.target[1437:])


def test_prepared_elsewhere_come_first(write, pictures):
    assert "other people" in locate("digits", None, None).test_note
    folder = write("digits", train=pictures(20), test=pictures(4))
    assert locate("digits", None, None).folder == folder
    assert locate("digits", None, None).test_note == ""  # which are not ours
