import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.cli.prepare import statistics
from experiments.core.config import build, check
from experiments.data.dataset import Arrays, Stream
from experiments.data.images import TfdsImages
from experiments.data.pipeline import Augment
from experiments.data.reading import cache, prepared, records
from experiments.data.reading.prepared import locate
from experiments.errors import UserError


@pytest.fixture
def toy(write, pictures) -> Path:
    return write("toy", train=pictures(50), test=pictures(9, seed=1))


def keys(split: Arrays) -> list[bytes]:
    return [image.tobytes() for image in split.arrays["image"]]


def test_splits_are_disjoint_and_complete(toy, pictures):
    splits = TfdsImages(name="toy", validation_fraction=0.2).load()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [40, 10, 9]
    train, validation, test = map(keys, (splits.train, splits.validation, splits.test))
    assert sorted(train + validation) == sorted(image.tobytes() for image in pictures(50))
    assert sorted(test) == sorted(image.tobytes() for image in pictures(9, seed=1))
    labels = {image.tobytes(): i % 3 for i, image in enumerate(pictures(50))}
    assert [labels[key] for key in train] == splits.train.arrays["label"].tolist()
    assert splits.train.arrays["image"].dtype == np.uint8
    assert splits.train.arrays["label"].dtype == np.int32


def test_the_seed_decides_what_is_held_out(toy):
    def held_out(seed: int) -> list[bytes]:
        return keys(TfdsImages(name="toy", split_seed=seed).load().validation)

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)


def test_limit_takes_from_the_training_data_only(toy):
    whole = TfdsImages(name="toy").load()
    data = TfdsImages(name="toy", limit=12)
    limited = data.load()
    assert data.spec.train_examples == len(limited.train) == 12
    assert set(keys(limited.train)) < set(keys(whole.train))
    assert keys(limited.validation) == keys(whole.validation)


def test_a_share_is_taken_of_every_class(toy):
    whole, third = (TfdsImages(name="toy", limit=limit).load() for limit in (1.0, 1 / 3))
    counts = [np.bincount(splits.train.arrays["label"]) for splits in (whole, third)]
    assert len(whole.train) == 45
    np.testing.assert_array_equal(counts[1], np.round(counts[0] / 3))
    few = TfdsImages(name="toy", limit=0.001).load()
    assert sorted(few.train.arrays["label"]) == [0, 1, 2]
    assert set(keys(few.train)) < set(keys(third.train)) < set(keys(whole.train))
    assert len(TfdsImages(name="toy", limit=0.2, stream=True).load().train) == 9


def test_a_validation_split_of_its_own_is_used(write, pictures):
    validation = pictures(5, seed=2)
    write("toy", train=pictures(20), dev=validation, test=pictures(4, seed=1))
    splits = TfdsImages(name="toy", validation_split="dev").load()
    assert len(splits.train) == 20
    assert keys(splits.validation) == [image.tobytes() for image in validation]


def test_spec_and_pipeline_read_nothing_when_configured():
    data = TfdsImages(
        name="absent", input_shape=[8, 8, 3], num_classes=5, mean=[0.5] * 3, std=[0.1] * 3
    )
    assert data.spec.input_shape == (8, 8, 3)
    assert data.pipeline.num_classes == 5
    assert data.pipeline.augment == Augment()


def test_spec_is_read_from_the_data_when_not_configured(toy):
    data = TfdsImages(name="toy")
    assert data.spec.input_shape == (6, 6, 3)
    assert data.spec.num_classes == 3
    assert data.pipeline.mean == (0.5, 0.5, 0.5)


def test_large_data_are_streamed(toy):
    assert isinstance(TfdsImages(name="toy", resident_limit_mb=0).load().train, Stream)
    assert isinstance(TfdsImages(name="toy").load().train, Arrays)


def test_the_newest_version_and_the_configuration_are_found(write, pictures):
    for version in ("1.9.0", "1.10.0"):
        write("toy/small", version, train=pictures(20), test=pictures(4))
    assert TfdsImages(name="toy").load() is not None
    write("toy/large", train=pictures(20), test=pictures(4))
    assert locate("toy/small", None, None).folder.name == "1.10.0"
    with pytest.raises(UserError, match=r"data\.name=toy/large"):
        TfdsImages(name="toy").load()
    with pytest.raises(UserError, match=r"1\.9\.0, 1\.10\.0, not 2\.0\.0"):
        TfdsImages(name="toy/small", version="2.0.0").load()


def test_data_that_changed_on_disk_are_decoded_again(write, pictures, data_dir):
    folder = write("toy", train=pictures(20), test=pictures(4))
    before = TfdsImages(name="toy").load()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write("toy", train=pictures(20, seed=5), test=pictures(4))
    folder.joinpath("label.labels.txt").write_text("cat\ndog\nfox\n")
    after = TfdsImages(name="toy").load()
    assert before.fingerprint != after.fingerprint
    assert set(keys(before.train)).isdisjoint(keys(after.train))
    assert after.class_names == ("cat", "dog", "fox")
    assert before.class_names == ("0", "1", "2")


def test_classes_of_known_data_have_names_where_none_were_prepared(write, pictures, monkeypatch):
    write("toy", train=pictures(20), test=pictures(4))
    monkeypatch.setitem(prepared.CLASSES, "toy", ("cat", "dog", "fox"))
    assert TfdsImages(name="toy").load().class_names == ("cat", "dog", "fox")
    monkeypatch.setitem(prepared.CLASSES, "toy", ("cat", "dog"))  # other data of this name
    assert TfdsImages(name="toy").load().class_names == ("0", "1", "2")
    assert [len(prepared.CLASSES[name]) for name in ("cifar10", "cifar100")] == [10, 100]


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_and_labels_belong_together(write, pictures, monkeypatch, workers):
    write("toy", shards=3, train=pictures(40), test=pictures(9))
    monkeypatch.setattr(cache, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(records, "CHUNK", 5)
    splits = TfdsImages(name="toy", workers=workers).load()
    expected = {image.tobytes(): i % 3 for i, image in enumerate(pictures(40))}
    for split in (splits.train, splits.validation):
        assert [expected[key] for key in keys(split)] == split.arrays["label"].tolist()


# Options that are wrong, and a part of the message for each.
WRONG = [
    ({"limit": 0}, "data.limit=0: must be at least 1 .* or null"),
    ({"limit": 46}, "data.limit is 46, but 'toy' has 45 training examples"),
    ({"validation_fraction": 0.0}, "holds out 0 of 50 examples"),
    ({"validation_fraction": 1.5}, "data.validation_fraction=1.5: must be at least 0"),
    ({"validation_fraction": 0.001}, "holds out 0 of 50 examples"),
    ({"batch_size": 0}, "data.batch_size=0: must be at least 1 or one of -1, auto"),
    ({"workers": -1}, "data.workers=-1: must be at least 0"),
    ({"std": [0.1, 0.0, 0.1]}, "data.std=.*: must be a list in which each is greater than 0"),
    ({"mean": [0.5]}, "data.mean has 1 values, but the images have 3 channels"),
    ({"mean": [0.5], "input_shape": [6, 6, 3]}, "data.mean has 1 values"),
    ({"input_shape": [28, 28]}, "data.input_shape is"),
    ({"input_shape": [28, 28, 3]}, r"have \[6, 6, 3\]: set data.input_shape=\[6,6,3\]"),
    ({"num_classes": 10}, "data.num_classes is 10, .* have 3"),
    ({"image_size": 8, "input_shape": [6, 6, 3]}, "to agree with data.image_size"),
    ({"image_size": 8, "stream": False}, "data.stream is False"),
    ({"test_split": "train"}, "data.test_split is train"),
    ({"validation_split": "test"}, "data.validation_split is test"),
    ({"test_split": "tets"}, "no split 'tets', only train, test; did you mean 'test'"),
    ({"validation_split": "dev"}, "no split 'dev'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(toy, options, message):
    config = {"_target_": "experiments.data.images.TfdsImages", "name": "toy", **options}

    def load() -> None:
        check(config, "data")
        build(config).load()

    with pytest.raises(UserError, match=message) as caught:
        load()
    assert len(str(caught.value).splitlines()) <= 2


def test_a_misspelt_name():
    with pytest.raises(UserError, match="no data set 'mnits' in TFDS; did you mean 'mnist'"):
        TfdsImages(name="mnits").load()


def test_data_that_are_not_prepared_end_in_a_message_at_once(data_dir):
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        TfdsImages(name="cifar100").load()
    assert time.monotonic() - started < 10
    for part in (str(data_dir), "make data DATA=cifar100", "TFDS_DATA_DIR", "data.dir"):
        assert part in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_files(toy, monkeypatch, workers):
    monkeypatch.setattr(cache, "WORTH_PROCESSES", 0)
    (path,) = toy.glob("*train*00001-of*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"{path}.*\nRemove {toy}"):
        TfdsImages(name="toy", workers=workers).load()


def test_a_missing_file(toy):
    (path,) = toy.glob("*test*00001-of*")
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        TfdsImages(name="toy").load()


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"splits": [1]}', "\udc80"])
def test_a_damaged_description(toy, file, content):
    (toy / file).write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"cannot be read .*\nRemove|is stored as tfrecord"):
        TfdsImages(name="toy").load()


def test_names_that_are_not_as_many_as_the_classes(toy):
    (toy / "label.labels.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="names 2, not 3"):
        TfdsImages(name="toy").load()


def test_data_in_the_wrong_format(toy):
    info = json.loads((toy / "dataset_info.json").read_text())
    (toy / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord.*\nRemove"):
        TfdsImages(name="toy").load()


def test_data_that_are_not_images(toy):
    text = {"featuresDict": {"features": {"text": {"text": {}}}}}
    (toy / "features.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match="not labelled images: it has text"):
        TfdsImages(name="toy").load()


def test_pictures_of_different_sizes_need_a_size(write, pictures):
    write("varied", shape=(-1, -1, 3), train=pictures(20), test=pictures(4))
    with pytest.raises(UserError, match=r"differ in size: set data\.image_size"):
        TfdsImages(name="varied").load()


SECOND_START = """
import sys, time
from experiments.data.images import TfdsImages
started = time.process_time()
splits = TfdsImages(name="mnist", dir=sys.argv[1], cache_dir=sys.argv[2]).load()
print(time.process_time() - started, len(splits.train))
print(*{"tensorflow_datasets", "grain", "array_record"} & set(sys.modules))
"""


@pytest.mark.slow
def test_a_second_start_with_mnist_takes_milliseconds(real_data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command = [sys.executable, "-c", SECOND_START, str(real_data), str(tmp_path)]
    first, second = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    )
    assert first[1] == second[1] == "54000"
    assert float(second[0]) < 0.5
    assert second[2:] == []  # nothing that only decoding needs is imported
    splits = TfdsImages(name="mnist", dir=str(real_data), cache_dir=str(tmp_path)).load()
    parts = (splits.train, splits.validation)
    images = np.concatenate([part.arrays["image"] for part in parts])
    mean, std = statistics(images)
    np.testing.assert_allclose([*mean, *std], [0.1307, 0.3081], atol=5e-5)  # as in conf/data


def test_cifar10_reads_as_tfds_itself_reads_it(real_data):
    tfds = pytest.importorskip("tensorflow_datasets")
    found = records.Records(locate("cifar10", None, str(real_data)), "test")
    images, labels = found.chunk((100, 110))
    source = tfds.builder("cifar10", data_dir=real_data).as_data_source("test")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        np.testing.assert_array_equal(image, source[100 + i]["image"])
        assert label == source[100 + i]["label"]


def test_labels_beyond_the_classes_are_refused(write, pictures):
    folder = write("toy", train=pictures(20), test=pictures(4))  # with the labels 0 to 2
    description = folder / "features.json"
    description.write_text(
        description.read_text().replace('"numClasses": "3"', '"numClasses": "2"')
    )
    with pytest.raises(UserError, match="has the label 2, none of 2 classes"):
        TfdsImages(name="toy").load()


def test_pictures_of_more_than_a_byte_a_channel_are_refused(write):
    deep = [np.full((6, 6, 1), 300, np.uint16)] * 20
    write("deep", train=deep, test=deep)
    with pytest.raises(UserError, match="more than 8 bits"):
        TfdsImages(name="deep").load()
