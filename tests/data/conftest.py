"""Small data sets in the layout of TFDS, written without it."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from experiments.data import records

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the user's own folders."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


REAL = Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "tensorflow_datasets")


@pytest.fixture
def real_data() -> Path:
    """The folder with MNIST and CIFAR-10 as prepared by TFDS."""
    for name in ("mnist", "cifar10"):
        if not (REAL / name).is_dir():
            pytest.skip(f"no prepared {name} in {REAL}: set TFDS_DATA_DIR")
    return REAL


@pytest.fixture
def pictures() -> Callable[..., list[np.ndarray]]:
    """`pictures(count)`: so many pictures of noise."""

    def draw(count: int, size: int = 6, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.integers(0, 256, (size, size, channels), np.uint8) for _ in range(count)]

    return draw


@pytest.fixture
def write(data_dir: Path) -> Callable[..., Path]:
    """`write(name, train=pictures, test=pictures)` prepares a data set, labels 0, 1, 2, 0, ..."""

    def write(
        name: str,
        version: str = "1.0.0",
        shards: int = 2,
        info: Mapping = {},
        shape: Sequence[int] | None = None,
        **splits: list[np.ndarray],
    ) -> Path:
        folder = data_dir / name / version
        folder.mkdir(parents=True)
        shape = shape or next(iter(splits.values()))[0].shape
        described = []
        for split, images in splits.items():
            parts = np.array_split(np.arange(len(images)), shards)
            for i, part in enumerate(parts):
                stem = name.split("/")[0]
                path = folder / f"{stem}-{split}.array_record-{i:05d}-of-{shards:05d}"
                writer = ArrayRecordWriter(str(path), "group_size:1")
                for index in part:
                    writer.write(serialize(images[index], index % 3))
                writer.close()
            described.append({"name": split, "shardLengths": [str(len(part)) for part in parts]})
        image = {"dtype": "uint8", "shape": {"dimensions": [str(d) for d in shape]}}
        features = {"image": {"image": image}, "label": {"classLabel": {"numClasses": "3"}}}
        (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
        fields = {"name": name.split("/")[0], "version": version, "fileFormat": "array_record"}
        (folder / "dataset_info.json").write_text(
            json.dumps({**fields, "splits": described, **info})
        )
        return folder

    return write


def serialize(image: np.ndarray, label: int) -> bytes:
    png = io.BytesIO()
    Image.fromarray(image.squeeze()).save(png, format="PNG")
    feature = {"image": {"bytes_list": {"value": [png.getvalue()]}}}
    feature["label"] = {"int64_list": {"value": [int(label)]}}
    entries = [{"key": key, "value": value} for key, value in feature.items()]
    return records._example_type()(features={"feature": entries}).SerializeToString()
