"""Data sets of Hugging Face, as `save_to_disk` writes them."""

import dataclasses
import logging
import sys
import urllib.error

import numpy as np
import pytest
from PIL import Image

from experiments.core.config import build, settled
from experiments.data import huggingface
from experiments.data.dataset import Stream
from experiments.errors import UserError
from support import composed

KINDS = ["zebra", "ape", "cow"]
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)


def data(path, *overrides):
    return build(composed("data=huggingface", f"data.name='{path}'", *overrides)["data"])


@pytest.fixture(scope="module", autouse=True)
def datasets():
    """The package, which takes seconds to import in each process that runs tests."""
    return pytest.importorskip("datasets", reason="the extra huggingface is not installed")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, datasets):
    """Thirty pictures of three classes and a validation split of three more."""
    kinds = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=KINDS)})

    def part(images):
        rows = {
            "img": [Image.fromarray(x) for x in images],
            "kind": [i % 3 for i in range(len(images))],
        }
        return datasets.Dataset.from_dict(rows, features=kinds)

    path = tmp_path_factory.mktemp("saved") / "pictures"
    splits = {"train": part(IMAGES), "valid": part(IMAGES[:3] // 2)}
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return path


def test_columns_classes_and_splits_of_pictures_are_found(pictures, caplog):
    with caplog.at_level(logging.INFO):
        config = data(pictures, "data.workers=0")
        splits = config.load()
    assert splits.class_names == tuple(KINDS)  # in the order of the data set
    assert (config.spec.input_shape, config.spec.num_classes) == ((8, 8, 1), 3)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [24, 3, 6]
    assert f"{pictures}: kind is predicted from img" in caplog.text
    np.testing.assert_array_equal(splits.validation.arrays["image"][..., 0], IMAGES[:3] // 2)
    rows = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    for part in (splits.train, splits.test):
        found = [rows[image.tobytes()] % 3 for image in part.arrays["image"]]
        np.testing.assert_array_equal(part.arrays["label"], found)
    streamed = data(pictures, "data.workers=0", "data.stream=true").load()
    assert isinstance(streamed.test, Stream)
    (batch,) = streamed.test.iterate(-1, seed=0, train=False)
    np.testing.assert_array_equal(batch["image"], splits.test.arrays["image"])


def test_other_pictures_are_read_as_the_learnt_ones_and_other_classes_refused(
    pictures, datasets, tmp_path
):
    learnt = data(pictures, "data.workers=0").load().found
    labels = datasets.ClassLabel(names=["cow", "yak"])
    features = datasets.Features({"photo": datasets.Image(), "kind": labels})
    photos = [Image.fromarray(np.zeros((20, 30, 3), np.uint8))] * 6
    for path, kinds in (("cows", [0] * 6), ("yaks", [0, 1] * 3)):
        rows = datasets.Dataset.from_dict({"photo": photos, "kind": kinds}, features=features)
        rows.save_to_disk(str(tmp_path / path))
    cows = dataclasses.replace(data(tmp_path / "cows", "data.workers=0"), found=learnt).load()
    assert cows.test.arrays["image"].shape == (1, 8, 8, 1)
    assert cows.test.arrays["label"] == [KINDS.index("cow")]
    with pytest.raises(UserError, match="has pictures of yak, none of the classes that the run"):
        dataclasses.replace(data(tmp_path / "yaks", "data.workers=0"), found=learnt).load()


@pytest.mark.parametrize(
    ("target", "task", "inputs"),
    [("kind", "classification", 4), ("[size,x.0]", "regression", 4)],
)
def test_columns_and_lists_of_numbers_are_a_table(datasets, tmp_path, target, task, inputs):
    x = np.random.default_rng(0).normal(3, 2, (40, 3))
    rows = {"x": x.tolist(), "size": x[:, 0] * 2, "kind": [("b", "a")[i % 2] for i in range(40)]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "t"))
    overrides = ["data=huggingface", f"data.name={tmp_path}/t", f"data.target={target}"]
    config = settled(composed(*overrides))
    assert config["objective"]["_target_"].lower().endswith(task)
    splits = build(config["data"]).load()
    assert splits.train.arrays["sequence"].shape == (28, inputs)


def test_pictures_without_labels_are_for_models_that_need_none(pictures, datasets, tmp_path):
    alone = datasets.load_from_disk(str(pictures))["train"].select_columns(["img"])
    alone.save_to_disk(str(tmp_path / "alone"))
    config = data(tmp_path / "alone", "data.workers=0")
    assert (len(config.load().train), config.spec.num_classes) == (22, 1)


def test_what_cannot_be_read_ends_in_one_line(pictures, datasets, tmp_path, monkeypatch):
    rows = {"text": [f"word {i}" for i in range(300)], "label": [i % 2 for i in range(300)]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "text"))
    datasets.Dataset.from_dict({"a": [1, 2], "b": [1, 2]}).save_to_disk(str(tmp_path / "ab"))
    for path, overrides, message in (
        (pictures, ["data.target=knd"], "no such column, only img, kind; did you mean 'kind'"),
        (pictures, ["data.image=kind"], "has images only in img"),
        (tmp_path / "ab", [], "has a, b, none of classes: say data.target="),
        (tmp_path / "text", [], "has no column to predict label from"),
        (tmp_path, [], "cannot be opened"),
    ):
        with pytest.raises(UserError, match=message):
            data(path, *overrides).load()

    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match=r"not in the cache of Hugging Face, and http\S+ does not"):
        _ = data("nobody/nothing").spec
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the cache of Hugging Face, and HF_HUB_OFFLINE is"):
        _ = data("nobody/nothing").spec
    monkeypatch.setitem(sys.modules, "datasets", None)
    huggingface.opened.cache_clear()
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'experiments\["):
        _ = data(pictures).spec
