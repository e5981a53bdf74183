import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.augment import Augment, Pipeline, resize
from experiments.errors import UserError


def pipeline(channels=3, **options):
    """Without normalisation, so that the outcome is in 0..1."""
    return Pipeline((0.0,) * channels, (1.0,) * channels, 10, Augment(**options))


def augmented(batch, seed=0, **options):
    run = jax.jit(functools.partial(pipeline(batch["image"].shape[-1], **options), train=True))
    return run(batch, jax.random.key(seed))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    # Above 0, so that what augmentation sets to 0 shows.
    images = rng.integers(1, 256, (64, 12, 10, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, 10, 64))}


def test_normalises(batch):
    out = Pipeline((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 10)(batch, train=False)
    expected = (np.asarray(batch["image"]) / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    np.testing.assert_allclose(out["image"], expected, rtol=1e-5, atol=1e-5)
    assert out["image"].dtype == jnp.float32
    assert (out["label"] == batch["label"]).all()


def test_without_options_training_equals_evaluation(batch):
    plain = jax.jit(functools.partial(pipeline(), train=False))(batch)["image"]
    np.testing.assert_array_equal(augmented(batch)["image"], plain)


ALL = {"crop_padding": 2, "flip": True, "cutout": 4, "mixup": 0.2, "jitter": 0.4}


def test_follows_from_the_key_inside_scan(batch):
    run = functools.partial(pipeline(**ALL), train=True)
    keys = jax.random.wrap_key_data(jnp.array([[0, 1], [0, 1], [0, 2]], jnp.uint32))
    scan = jax.jit(lambda: jax.lax.scan(lambda _, key: (_, run(batch, key)["image"]), 0, keys)[1])
    first, again, other = scan()
    assert first.shape == batch["image"].shape
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_evaluation_augments_nothing(batch):
    out = pipeline(**ALL)(batch, train=False)
    np.testing.assert_allclose(out["image"], batch["image"] / 255.0, rtol=1e-6)
    assert (out["label"] == batch["label"]).all()


def test_crops_come_from_the_padded_image(batch):
    padding = 3
    out = augmented(batch, crop_padding=padding)["image"]
    pad = (padding, padding)
    padded = np.pad(batch["image"], ((0, 0), pad, pad, (0, 0))) / 255
    offsets = set()
    for image, source in zip(np.asarray(out), padded, strict=True):
        found = [
            (top, left)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            if np.allclose(image, source[top : top + 12, left : left + 10], atol=1e-6)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(7))


def test_flips_half_of_the_images(batch):
    images = jnp.tile(batch["image"], (32, 1, 1, 1))
    out = augmented({"image": images, "label": jnp.zeros(2048, int)}, flip=True)["image"]
    plain = np.asarray(images) / np.float32(255)
    kept = np.isclose(out, plain).all((1, 2, 3))
    mirrored = np.isclose(out, plain[:, :, ::-1]).all((1, 2, 3))
    assert (kept ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.05


def test_cutout_sets_a_square_to_the_mean(batch):
    changed = np.asarray(augmented(batch, cutout=4)["image"]) == 0
    areas = changed[..., 0].sum((1, 2))
    assert (changed.all(-1) == changed.any(-1)).all()
    assert areas.max() == 16  # whole in the middle, and at least a quarter of it in a corner
    assert areas.min() >= 4
    assert len(set(areas)) > 1
    heights, widths = changed[..., 0].any(2).sum(1), changed[..., 0].any(1).sum(1)
    np.testing.assert_array_equal(areas, heights * widths)


def test_mixup_blends_images_and_labels_alike(batch):
    out = augmented(batch, mixup=1.0)
    assert out["label"].shape == (64, 10)
    np.testing.assert_allclose(out["label"].sum(-1), 1, rtol=1e-5)
    plain, one_hot = np.asarray(batch["image"]) / 255, np.eye(10)[np.asarray(batch["label"])]
    other, other_hot = np.roll(plain, 1, 0), np.roll(one_hot, 1, 0)
    spread = np.where(plain == other, 1, plain - other)
    weight = np.median((out["image"] - other) / spread, axis=(1, 2, 3))[:, None]
    assert ((weight >= -1e-6) & (weight <= 1 + 1e-6)).all()
    blend = weight * one_hot + (1 - weight) * other_hot
    np.testing.assert_allclose(out["label"], blend, atol=1e-3)


def test_jitter_stays_in_range_and_is_nothing_at_strength_0(batch):
    run = jax.jit(
        lambda strength: pipeline(jitter=strength)(batch, jax.random.key(0), train=True)["image"]
    )
    out = run(0.8)
    brightness = np.asarray(out.mean((1, 2, 3)) / batch["image"].mean((1, 2, 3)))
    assert len(np.unique(brightness)) > 32  # each image in its own way
    assert out.min() >= 0
    assert out.max() <= 1
    np.testing.assert_allclose(run(0.0), batch["image"] / 255.0, atol=1e-6)


def test_grey_images_jitter(batch):
    grey = {**batch, "image": batch["image"][..., :1]}
    assert augmented(grey, jitter=0.4)["image"].shape == grey["image"].shape


def test_strengths_may_be_traced_and_vmapped(batch):
    batch = {name: values[:8] for name, values in batch.items()}

    def run(mixup, jitter, key):
        return pipeline(mixup=mixup, jitter=jitter)(batch, key, train=True)

    keys = jax.random.split(jax.random.key(0), 2)
    strengths = jnp.array([0.1, 0.8])
    lanes = jax.jit(jax.vmap(run))(strengths, strengths, keys)
    solo = jax.jit(run)
    for lane in range(2):
        alone = solo(strengths[lane], strengths[lane], keys[lane])
        np.testing.assert_allclose(lanes["image"][lane], alone["image"], atol=1e-5)
        np.testing.assert_allclose(lanes["label"][lane], alone["label"], atol=1e-5)


def test_resize():
    assert resize(jnp.ones((2, 3, 8, 8, 1)), (16, 16)).shape == (2, 3, 16, 16, 1)
    np.testing.assert_allclose(resize(jnp.full((1, 8, 8, 1), 0.3), (20, 24)), 0.3, rtol=1e-5)


@pytest.mark.parametrize("key", ["crop_padding", "cutout", "mixup", "jitter"])
def test_negative_options_are_refused(key):
    with pytest.raises(UserError, match=f"data.augment.{key} is -1"):
        Augment(**{key: -1})
