"""Pictures of one's own in a folder for each class."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from experiments.data.dataset import Stream
from experiments.data.folder import FolderImages
from experiments.data.reading.pictures import decoded, fitted
from experiments.errors import UserError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path, array=GREY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


def load(path, **options):
    return FolderImages(path=str(path), workers=0, **options)


@pytest.fixture
def photos(tmp_path):
    """Twelve noisy pictures of dogs and eight of cats, 8x8."""
    rng = np.random.default_rng(0)
    for name, count in (("dog", 12), ("cat", 8)):
        for i in range(count):
            save(tmp_path / f"photos/{name}/{i:02d}.png", rng.integers(0, 256, (8, 8), np.uint8))
    return tmp_path / "photos"


def test_classes_shape_and_scale_are_found_and_each_class_is_divided(photos, caplog):
    with caplog.at_level("INFO"):
        data = load(photos, held_out=0.25)
        splits = data.load()
    assert splits.class_names == ("cat", "dog")
    assert (data.spec.input_shape, data.spec.num_classes) == ((8, 8, 1), 2)
    counts = {
        p: np.bincount(getattr(splits, p).arrays["label"]).tolist() for p in ("train", "test")
    }
    assert counts == {"train": [4, 6], "test": [2, 3]}
    keys = [
        i.tobytes()
        for p in ("train", "validation", "test")
        for i in getattr(splits, p).arrays["image"]
    ]
    assert len(set(keys)) == 20
    train = splits.train.arrays["image"] / 255
    np.testing.assert_allclose(data.pipeline.mean, train.mean(), atol=1e-4)
    np.testing.assert_allclose(data.pipeline.std, train.std(), atol=1e-4)
    assert "20 pictures of 2 classes, 8x8 in grey; 10 for train, 5 for validation" in caplog.text
    same = load(photos, held_out=0.25).load()
    np.testing.assert_array_equal(same.test.arrays["image"], splits.test.arrays["image"])
    assert load(photos, held_out=0.25, split_seed=1).load().test.arrays["label"].shape == (5,)


def test_streamed_pictures_are_the_resident_ones(photos):
    resident, streamed = load(photos).load(), load(photos, stream=True).load()
    assert isinstance(streamed.train, Stream)
    for split in ("train", "validation", "test"):
        (batch,) = getattr(streamed, split).iterate(-1, seed=0, train=False)
        for name, array in getattr(resident, split).arrays.items():
            np.testing.assert_array_equal(batch[name], array)


def test_folders_of_splits_are_taken_and_the_others_drawn(photos, tmp_path, caplog):
    for split in ("train", "val"):
        (tmp_path / "own" / split).mkdir(parents=True)
    os.rename(photos / "dog", tmp_path / "own/train/dog")
    os.rename(photos / "cat", tmp_path / "own/train/cat")
    save(tmp_path / "own/val/dog/x.png")
    splits = load(tmp_path / "own").load()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [17, 1, 3]
    np.testing.assert_array_equal(splits.validation.arrays["image"][0, ..., 0], GREY)
    assert "no pictures for validation of cat" in caplog.text


def test_a_class_may_be_called_train(photos):
    os.rename(photos / "dog", photos / "train")
    assert load(photos).load().class_names == ("cat", "train")


WIDE = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4 * 257
ALPHA = np.stack([np.zeros_like(GREY)] * 3 + [255 - GREY], axis=-1)


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("a.png", GREY, {}),
        ("a.bmp", GREY, {}),
        ("a.TIFF", GREY, {"format": "TIFF"}),
        ("a.webp", np.stack([GREY] * 3, -1), {"lossless": True}),
        ("16.png", WIDE, {}),
        ("16.tif", WIDE, {}),
        ("palette.png", Image.fromarray(GREY).convert("P"), {}),
        ("alpha.png", ALPHA, {}),  # black, seen through: on white as bright as it is transparent
        ("la.png", Image.merge("LA", [Image.new("L", (8, 8)), Image.fromarray(255 - GREY)]), {}),
    ],
)
def test_every_format_and_mode_is_read_as_the_same_pixels(tmp_path, name, image, options):
    save(tmp_path / name, image, **options)
    picture, size = decoded(str(tmp_path / name), 8)
    assert size == (8, 8)
    pixels = np.asarray(fitted(picture, (8, 8, 1)))[..., :]
    np.testing.assert_allclose(pixels.astype(int), GREY, atol=1)


def test_photographs_are_turned_upright_and_cut_to_one_square(tmp_path):
    left_red = np.zeros((300, 600, 3), np.uint8)
    left_red[:, :300, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: what is left comes up
    for i in range(3):
        save(tmp_path / f"p/a/{i}.jpg", left_red, exif=exif)
        save(tmp_path / f"p/b/{i}.png", np.zeros((40 + i, 30), np.uint8))
    data = load(tmp_path / "p", held_out=0.3)
    assert data.spec.input_shape == (165, 165, 3)  # between 30 and 300
    train = data.load().train.arrays
    (red,) = train["image"][train["label"] == 0]
    assert red[20, :, 0].min() > 200
    assert red[-20, :, 0].max() < 50
    assert (
        load(tmp_path / "p", held_out=0.3, image_size=20).load().test.arrays["image"].shape[1] == 20
    )


def test_large_pictures_of_one_size_are_made_smaller(tmp_path):
    for i in range(4):
        save(tmp_path / f"p/a/{i}.png", np.zeros((300, 600), np.uint8))
    assert load(tmp_path / "p", held_out=0.25).spec.input_shape == (224, 224, 1)


def test_files_that_cannot_be_read_are_named_and_left_out(photos, caplog):
    whole = (photos / "dog/00.png").read_bytes()
    (photos / "dog/torn.png").write_bytes(whole[: len(whole) // 2])
    (photos / "cat/empty.jpg").write_bytes(b"")
    (photos / "cat/notes.txt").write_text("not a picture")
    for _ in range(2):  # the second time it is known already
        caplog.clear()
        splits = load(photos).load()
        assert sum(map(len, (splits.train, splits.validation, splits.test))) == 20
        assert "left out, as unreadable, 2: cat/empty.jpg, dog/torn.png" in caplog.text
    for path in photos.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 22 pictures can be read"):
        load(photos).load()


def test_bad_folders_end_in_one_line(photos, tmp_path):
    (tmp_path / "empty/a").mkdir(parents=True)
    save(tmp_path / "flat/a.png")
    save(tmp_path / "deep/a/b/c.png")
    save(tmp_path / "one/a/1.png")
    save(tmp_path / "one/b/1.png")
    for path, message in {
        tmp_path / "none": "no such file",
        photos / "dog/00.png": "not a directory",
        tmp_path / "empty": r"no pictures \(png, jpg",
        tmp_path / "flat": "has pictures, but no folder for each class",
        tmp_path / "deep": r"folders in its folders \(a/b\)",
        tmp_path / "one": "no pictures for validation: 2 in all; .* from each class of 3 and more",
    }.items():
        with pytest.raises(UserError, match=message):
            load(path).load()
    with pytest.raises(UserError, match=r"data.limit is 99, but .* has 14 training"):
        load(photos, limit=99).load()


def test_other_pictures_keep_the_size_that_was_learnt(photos):
    learnt = load(photos, image_size=6).load().found
    assert load(photos, image_size=6, found=learnt).load().test.arrays["image"].shape[1:3] == (6, 6)
    with pytest.raises(UserError, match=r"data.image_size=9: the run has learnt pictures of 6x6"):
        load(photos, image_size=9, found=learnt).load()


def test_a_run_keeps_what_it_found(photos, tmp_path, run_cli):
    """Later commands on its folder read new pictures as those that it was trained on."""
    options = ["model.hidden=[4]", "trainer.epochs=1", "logger=none", "trainer.figures=false"]
    options += ["data=folder", "data.batch_size=4", "data.workers=0"]
    run = tmp_path / "run"
    assert run_cli(f"data.path={photos}", *options, folders=False)[0] == 0
    found = json.loads((run / "data.json").read_text())
    assert (found["classes"], found["shape"]) == (["cat", "dog"], [8, 8, 1])
    (tmp_path / "new").mkdir()
    for i in range(3):
        save(tmp_path / f"new/dog/{i}.jpg", np.zeros((20, 30, 3), np.uint8))
    evaluate = ["mode=evaluate", f"checkpoint={run}", f"data.path={tmp_path}/new"]
    assert run_cli(*evaluate, folder=tmp_path / "e", folders=False)[0] == 0
    save(tmp_path / "new/wolf/1.png")
    code, error = run_cli(*evaluate, folder=tmp_path / "e", folders=False)
    assert code == 2
    assert "pictures of wolf, none of the classes that the run has learnt: cat, dog" in error
    only = ["data=folder", f"data.path={tmp_path}/only", "logger=none", "data.batch_size=2"]
    for i in range(4):
        save(tmp_path / f"only/all/{i}.png")
    code, error = run_cli(*only, folder=tmp_path / "o", folders=False)
    assert (code, "these data have one class" in error) == (2, True)
