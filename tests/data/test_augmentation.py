"""Moving, erasing and mixing images and RandAugment, against NumPy and Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from experiments.core.config import check
from experiments.data import augmentation as aug
from experiments.data.pipeline import Augment, Pipeline
from experiments.errors import UserError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(1, 256, (256, 10, 12, 1), np.uint8)
SMOOTH = np.stack(
    [Image.fromarray(x).resize((12, 10)) for x in RNG.integers(20, 200, (4, 4, 4, 3), np.uint8)]
)


def pipeline(channels=1, **options):
    return Pipeline((0.0,) * channels, (1.0,) * channels, 4, Augment(**options))


def augmented(images, labels=None, **options):
    """Augment images once, without normalisation."""
    batch = {"image": images}
    if labels is not None:
        batch |= {"label": labels, "target": labels[:, None] * 1.0}
    run = functools.partial(pipeline(images.shape[-1], **options), train=True)
    return jax.tree.map(np.asarray, jax.jit(run)(batch, KEY))


def test_a_quarter_turn_and_whole_shifts_are_numpys():
    images = NOISE[:3, :10, :10] / np.float32(255)
    warp = jax.jit(aug.warp)
    quarter = warp(images, aug.turned(jnp.full(3, jnp.pi / 2)), jnp.zeros((3, 2)))
    np.testing.assert_allclose(quarter, np.rot90(images, axes=(1, 2)), atol=1e-5)
    same = jnp.tile(jnp.eye(2), (3, 1, 1))
    shifts = np.array([[2.0, 0.0], [0.0, -3.0], [-1.0, 4.0]])
    for image, moved, (down, right) in zip(
        images, warp(images, same, shifts), shifts.astype(int), strict=True
    ):
        padded = np.pad(image, ((10, 10), (10, 10), (0, 0)))
        expected = padded[10 - down : 20 - down, 10 - right : 20 - right]
        np.testing.assert_allclose(moved, expected, atol=1e-6)
    half = warp(images, same / 2, jnp.zeros((3, 2)))  # twice as large, between pixels
    around = images[:, 4:6, 4:6].mean((1, 2))
    np.testing.assert_allclose(half[:, 4:6, 4:6].mean((1, 2)), around, atol=1e-5)


def test_images_move_within_the_ranges_that_are_said():
    dot = np.zeros((512, 21, 21, 1), np.uint8)
    dot[:, 10, 10] = 255  # the centre: neither turned nor scaled
    places = np.stack(np.indices((21, 21)), -1)

    def centres(images):
        weights = images / images.sum((1, 2, 3), keepdims=True)
        return (weights * places).sum((1, 2)) - 10

    moved = centres(augmented(dot, translation=0.2)["image"])
    assert np.abs(moved).max() <= 0.2 * 21 + 1e-3
    np.testing.assert_allclose(moved.std(axis=0), 0.2 * 21 / np.sqrt(3), rtol=0.1)  # uniform
    np.testing.assert_allclose(augmented(dot, scale=0.3, rotation=9.0)["image"][:, 10, 10], 1)
    dot = np.roll(dot, 6, axis=2)  # to the right
    turned = centres(augmented(dot, rotation=30.0)["image"])
    angles = np.degrees(np.arctan2(-turned[:, 0], turned[:, 1]))
    assert 28 < angles.max() < 31
    assert -31 < angles.min() < -28
    sizes = centres(augmented(dot, scale=0.3)["image"])[:, 1] / 6
    assert (sizes.min(), sizes.max()) == pytest.approx((0.7, 1.3), abs=0.05)


def test_erasing_fills_a_rectangle_of_the_area_that_is_drawn():
    images = np.zeros((2000, 20, 30, 1), np.uint8)
    changed = augmented(images, random_erasing=0.4)["image"][..., 0] != 0
    some = changed.any((1, 2))
    assert some.mean() == pytest.approx(0.4, abs=0.04)
    heights, widths = changed.any(2).sum(1)[some], changed.any(1).sum(1)[some]
    areas = changed.sum((1, 2))[some]
    np.testing.assert_array_equal(areas, heights * widths)
    assert areas.min() >= 0.015 * 600
    assert areas.max() <= 0.43 * 600
    assert areas.mean() == pytest.approx(0.21 * 600, rel=0.05)
    edges = changed[:, 0].any(1)[some].mean()
    assert 0.05 < edges < 0.4  # anywhere


def test_labels_count_by_the_area_that_cutmix_leaves_and_by_the_weight_of_mixup():
    """With both on each image has either."""
    labels = np.arange(256) % 4
    images = np.broadcast_to((labels * 60 + 10).astype(np.uint8)[:, None, None, None], NOISE.shape)
    out = augmented(images, labels, cutmix=1.0, mixup=1.0)
    assert out["label"].shape == (256, 4)
    np.testing.assert_allclose(out["label"].sum(1), 1, rtol=1e-5)
    own = out["label"][np.arange(256), labels]
    numbers = own * labels + (1 - own) * np.roll(labels, 1)  # those to predict are mixed alike
    np.testing.assert_allclose(out["target"][:, 0], numbers, atol=1e-5)
    pixels = np.round(out["image"][..., 0] * 255, 3)
    whole, other = (images[:, :, :, 0], np.roll(images, 1, 0)[:, :, :, 0])
    cut = ((pixels == whole) | (pixels == other)).all((1, 2))
    assert 80 < cut.sum() < 180
    np.testing.assert_allclose(own[cut], (pixels == whole).mean((1, 2))[cut], atol=1e-5)
    boxes = (pixels == other)[cut]
    np.testing.assert_array_equal(boxes.any(2).sum(1) * boxes.any(1).sum(1), boxes.sum((1, 2)))
    assert own[cut].std() > 0.15  # areas of all sizes
    blend = own[:, None, None] * whole + (1 - own[:, None, None]) * other
    np.testing.assert_allclose(pixels[~cut], blend[~cut], atol=0.01)


def test_the_changes_of_colour_are_pillows():
    factor = 1 - 0.9 * 0.35

    def enhanced(kind):
        return lambda image: kind(image).enhance(factor)

    pillow = [
        enhanced(ImageEnhance.Brightness),
        enhanced(ImageEnhance.Contrast),
        enhanced(ImageEnhance.Color),
        enhanced(ImageEnhance.Sharpness),
        lambda image: ImageOps.posterize(image, 7),
        lambda image: ImageOps.solarize(image, 166),
        ImageOps.autocontrast,
        ImageOps.equalize,
    ]
    images = jnp.asarray(SMOOTH / np.float32(255))
    ours = jax.jit(aug._colours)(images, jnp.float32(0.35), jnp.full(4, 0.35))
    for (other, share), reference in zip(ours, pillow, strict=True):
        amount = 1.0 if reference in pillow[-2:] else jnp.reshape(share, (-1, 1, 1, 1))
        found = np.clip(images + amount * (other - images), 0, 1) * 255
        expected = np.stack([reference(Image.fromarray(x)) for x in SMOOTH])
        np.testing.assert_allclose(found, expected, atol=1.2)  # Pillow rounds down, and on the way


def test_randaugment_of_magnitude_0_changes_nothing_and_others_change_most():
    images = np.tile(SMOOTH, (32, 1, 1, 1))
    batch = {"image": jnp.asarray(images)}

    @jax.jit
    def run(magnitude):
        options = {"randaugment": magnitude, "randaugment_operations": 1}
        return pipeline(3, **options)(batch, KEY, train=True)["image"]

    np.testing.assert_allclose(run(0.0), images / np.float32(255), atol=1e-5)
    some, more = (np.asarray(run(magnitude)) for magnitude in (9.0, 30.0))
    size = np.abs(some - images / np.float32(255)).mean((1, 2, 3))
    assert 0.6 < (size > 1e-3).mean() < 0.95  # one of 14 operations is the identity
    assert np.abs(more - images / np.float32(255)).mean() > 1.5 * size.mean()
    assert 0 <= more.min() <= more.max() <= 1


def test_strengths_of_trials_side_by_side_are_traced():
    strengths = ("rotation", "scale", "translation", "randaugment", "random_erasing", "cutmix")
    batch = {"image": NOISE[:6]}  # of a data set without targets

    def run(values, key):
        return pipeline(**dict(zip(strengths, values, strict=True)))(batch, key, train=True)

    keys = jax.random.split(KEY, 2)
    out = jax.eval_shape(jax.vmap(run), jnp.ones((2, len(strengths))), keys)
    assert out["image"].shape == (2, 6, 10, 12, 1)


def test_options_out_of_range_are_refused():
    for key, value in {
        "rotation": -1,
        "scale": 1.0,
        "randaugment": 31,
        "random_erasing": 2,
    }.items():
        with pytest.raises(UserError, match=rf"augment\.{key}={value}: must be"):
            check({"_target_": "experiments.data.pipeline.Augment", key: value}, "augment")
