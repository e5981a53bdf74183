from pathlib import Path

import numpy as np
import pytest

from experiments.data.dataset import Stream
from experiments.data.images import TfdsImages
from experiments.errors import UserError
from support import leaves_no_child


def load(name: str = "toy", **options):
    defaults = {"stream": True, "workers": 0, "validation_fraction": 0.2}
    return TfdsImages(name=name, **(defaults | options)).load()


def key(image: np.ndarray) -> bytes:
    return image.tobytes()


def images_of(batches) -> list[bytes]:
    return [key(image) for batch in batches for image in batch["image"]]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def toy(write, pictures) -> list[np.ndarray]:
    train = pictures(40)
    write("toy", train=train, test=pictures(7, seed=1))
    return train


def test_an_epoch_is_a_new_permutation_of_the_training_examples(toy):
    train = load().train
    assert isinstance(train, Stream)
    assert len(train) == 32
    batches = train.iterate(8, seed=0, train=True)
    epochs = [[next(batches) for _ in range(4)] for _ in range(2)]
    first, second = map(images_of, epochs)
    assert len(set(first)) == 32
    assert first != second
    assert set(first) == set(second)
    assert next(batches)["image"].shape == (8, 6, 6, 3)
    assert epochs[0][0]["image"].dtype == np.uint8
    assert epochs[0][0]["label"].dtype == np.int32
    position = {key(image): i % 3 for i, image in enumerate(toy)}
    for batch in epochs[0]:
        assert [position[key(image)] for image in batch["image"]] == batch["label"].tolist()


def test_the_remainder_of_an_epoch_is_left_out(toy):
    batches = load().train.iterate(9, seed=0, train=True)
    epoch = images_of([next(batches) for _ in range(3)])
    assert len(set(epoch)) == 27


def test_evaluation_is_one_pass_with_a_padded_end(toy):
    batches = list(load().test.iterate(4, seed=0, train=False))
    assert [batch["image"].shape for batch in batches] == [(4, 6, 6, 3)] * 2
    assert [batch["mask"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert not batches[1]["image"][3].any()
    assert np.concatenate([batch["label"] for batch in batches])[:7].tolist() == [0, 1, 2] * 2 + [0]


def test_evaluation_goes_on_with_the_same_readers(toy):
    batches = load(workers=1).test.iterate(4, seed=0, train=False)
    readers = batches._iterator
    first, second = list(batches), list(batches)
    assert len(first) == 2
    assert all(map(equal, first, second))
    assert batches._iterator is readers
    batches.close()


def test_streamed_splits_are_the_resident_ones(toy):
    resident, streamed = load(stream=False), load()
    for split in ("train", "validation", "test"):
        (batch,) = getattr(streamed, split).iterate(-1, seed=0, train=False)
        for name, array in getattr(resident, split).arrays.items():
            np.testing.assert_array_equal(batch[name], array)


def test_resumes_exactly(toy):
    train = load(image_size=4).train
    batches = train.iterate(5, seed=3, train=True)
    before = [next(batches) for _ in range(4)]
    after = [next(batches) for _ in range(5)]  # on into the next epoch
    fresh = train.iterate(5, seed=3, train=True)
    fresh.go_to(4)
    assert all(map(equal, after, (next(fresh) for _ in range(5))))
    fresh.go_to(0)
    assert all(map(equal, before, (next(fresh) for _ in range(4))))
    assert not equal(before[0], next(train.iterate(5, seed=4, train=True)))


def test_batches_do_not_depend_on_the_workers(toy):
    alone = load(image_size=4).train.iterate(5, seed=3, train=True)
    expected = [next(alone) for _ in range(5)]
    batches = load(image_size=4, workers=2).train.iterate(5, seed=3, train=True)
    try:
        assert all(map(equal, expected[:2], (next(batches) for _ in range(2))))
        alone.go_to(2)  # read with two workers, resumed with none
        assert all(map(equal, expected[2:], (next(alone) for _ in range(3))))
    finally:
        batches.close()


def test_pictures_of_any_size_are_cropped_and_resized(write, pictures):
    sizes = [(30, 20), (20, 40), (16, 16), (5, 9)]
    varied = [np.full((*size, 3), 10 * i, np.uint8) for i, size in enumerate(sizes)]
    write("varied", shape=(-1, -1, 3), train=varied * 5, test=varied)
    data = TfdsImages(name="varied", image_size=8, workers=0)
    assert data.spec.input_shape == (8, 8, 3)
    splits = data.load()
    assert isinstance(splits.train, Stream)
    assert next(splits.train.iterate(4, 0, True))["image"].shape == (4, 8, 8, 3)
    (batch,) = splits.test.iterate(4, 0, False)
    assert [set(image.ravel()) for image in batch["image"]] == [{0}, {10}, {20}, {30}]


def test_evaluation_sees_the_centre_and_training_random_parts(write, pictures):
    """A ramp from left to right tells which columns a crop came from."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3)).copy()
    write("ramp", train=[ramp] * 40, test=[ramp])
    splits = load("ramp", image_size=224)
    (batch,) = splits.test.iterate(1, 0, False)
    np.testing.assert_array_equal(batch["image"][0, 0, :, 0], np.arange(16, 240))
    rows = next(splits.train.iterate(32, 0, True))["image"][:, 0, :, 0].astype(int)
    mirrored = rows[:, 0] > rows[:, -1]
    assert 4 < mirrored.sum() < 28
    assert len({tuple(row) for row in rows}) > 24
    widths = np.abs(rows[:, 0] - rows[:, -1]) / 256
    assert widths.min() < 0.6  # of the whole width; the smallest crop is a quarter of it
    assert widths.max() > 0.8


def test_a_damaged_file_is_the_users_to_correct(toy, data_dir: Path):
    splits = load()
    for path in data_dir.glob("toy/1.0.0/*train*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        list(splits.train.iterate(4, 0, False))


READ = """
import time
from experiments.data.images import TfdsImages
if __name__ == "__main__":
    batches = TfdsImages(name="digits", stream=True, workers=1).load().train.iterate(4, 0, True)
    next(batches)
    print("reads", flush=True)
    time.sleep(60)
"""


def test_decoders_end_with_a_killed_run():
    assert leaves_no_child(READ)
