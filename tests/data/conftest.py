"""Small data sets in the layout of TFDS, written without TFDS."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from experiments.data.reading.records import Example

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from reading or writing the user's own folders."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


REAL = Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "tensorflow_datasets")


@pytest.fixture
def real_data() -> Path:
    """The folder with MNIST and CIFAR-10 as TFDS prepares them."""
    for name in ("mnist", "cifar10"):
        if not (REAL / name).is_dir():
            pytest.skip(f"no prepared {name} in {REAL}: set TFDS_DATA_DIR")
    return REAL


@pytest.fixture
def pictures() -> Callable[..., list[np.ndarray]]:
    """A function `pictures(count)` that draws pictures of noise."""

    def draw(count: int, size: int = 6, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.integers(0, 256, (size, size, channels), np.uint8) for _ in range(count)]

    return draw


@pytest.fixture
def write(data_dir: Path) -> Callable[..., Path]:
    """A function `write(name, train=pictures, test=pictures)`; labels are 0, 1, 2, 0, ..."""

    def write(
        name: str,
        version: str = "1.0.0",
        shards: int = 2,
        shape: Sequence[int] | None = None,
        **splits: list[np.ndarray],
    ) -> Path:
        shape = shape or next(iter(splits.values()))[0].shape
        image = {"dtype": "uint8", "shape": {"dimensions": [str(d) for d in shape]}}
        features = {"image": {"image": image}, "label": {"classLabel": {"numClasses": "3"}}}
        examples = {
            split: [{"image": png(image), "label": i % 3} for i, image in enumerate(images)]
            for split, images in splits.items()
        }
        return prepare(data_dir, name, version, shards, features, examples)

    return write


@pytest.fixture
def write_texts(data_dir: Path) -> Callable[..., Path]:
    """A function `write_texts(name, train=[(text, label), ...])`; a label may be None."""

    def write(name: str, **splits: list[tuple[str, int | None]]) -> Path:
        features: dict = {"text": {"text": {}}}
        if next(iter(splits.values()))[0][1] is not None:
            features["label"] = {"classLabel": {"numClasses": "2"}}
        examples = {
            split: [{"text": text.encode(), "label": label} for text, label in texts]
            for split, texts in splits.items()
        }
        return prepare(data_dir, name, "1.0.0", 1, features, examples)

    return write


def prepare(
    data_dir: Path,
    name: str,
    version: str,
    shards: int,
    features: Mapping,
    splits: Mapping[str, list[dict]],
) -> Path:
    """Write examples and their description; a feature that is None is left out."""
    folder, stem = data_dir / name / version, name.split("/")[0]
    folder.mkdir(parents=True)
    described = []
    for split, examples in splits.items():
        parts = np.array_split(np.arange(len(examples)), shards)
        for i, part in enumerate(parts):
            path = folder / f"{stem}-{split}.array_record-{i:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for index in part:
                writer.write(serialize(examples[index]))
            writer.close()
        described.append({"name": split, "shardLengths": [str(len(part)) for part in parts]})
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    info = {"name": stem, "version": version, "fileFormat": "array_record", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def serialize(features: Mapping[str, bytes | int | None]) -> bytes:
    entries = [
        {"key": key, "value": {kind: {"value": [value]}}}
        for key, value in features.items()
        if value is not None
        for kind in ["bytes_list" if isinstance(value, bytes) else "int64_list"]
    ]
    return Example(features={"feature": entries}).SerializeToString()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, format="PNG")
    return file.getvalue()
