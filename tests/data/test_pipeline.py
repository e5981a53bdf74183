"""Normalisation, augmentation and crops of images, and the mean over several crops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.config import check
from experiments.core.experiment import Experiment
from experiments.data.dataset import Spec
from experiments.data.images import TfdsImages
from experiments.data.pipeline import Augment, Averaged, Pipeline, centre_crop, resize, views
from experiments.data.reading.stream import centre_box
from experiments.errors import UserError
from support import composed

KEY = jax.random.key(0)
IMAGES = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.uint8).reshape(2, 8, 8, 3)


def pipeline(channels=3, **options):
    """Return a pipeline without normalisation, so that the outcome is in 0..1."""
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
    same = np.isclose(out, plain).all((1, 2, 3))
    mirrored = np.isclose(out, plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
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
    together = jax.jit(jax.vmap(run))(strengths, strengths, keys)
    one = jax.jit(run)
    for i in range(2):
        alone = one(strengths[i], strengths[i], keys[i])
        np.testing.assert_allclose(together["image"][i], alone["image"], atol=1e-5)
        np.testing.assert_allclose(together["label"][i], alone["label"], atol=1e-5)


def test_resize():
    assert resize(jnp.ones((2, 3, 8, 8, 1)), (16, 16)).shape == (2, 3, 16, 16, 1)
    np.testing.assert_allclose(resize(jnp.full((1, 8, 8, 1), 0.3), (20, 24)), 0.3, rtol=1e-5)


@pytest.mark.parametrize("key", ["crop_padding", "cutout", "mixup", "jitter", "pca"])
def test_negative_options_are_refused(key):
    config = {"_target_": "experiments.data.pipeline.Augment", key: -1}
    with pytest.raises(UserError, match=f"data.augment.{key}=-1: must be at least 0"):
        check(config, "data.augment")


def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images():
    crops = views(IMAGES, "ten_crop", 6, 0)
    assert crops.shape == (2, 10, 6, 6, 3)
    expected = [IMAGES[:, :6, :6], IMAGES[:, :6, 2:], IMAGES[:, 2:, :6], IMAGES[:, 2:, 2:]]
    expected.append(centre_crop(IMAGES, 6))
    for place, crop in enumerate(expected):
        np.testing.assert_array_equal(crops[:, place], crop)
        np.testing.assert_array_equal(crops[:, place + 5], crop[:, :, ::-1])
    np.testing.assert_array_equal(views(IMAGES, "five_crop", 6, 0), crops[:, :5])


@pytest.mark.parametrize("size", [None, 6])
def test_flip_gives_the_image_and_its_mirror_image(size):
    seen = views(IMAGES, "flip", size, 3)
    whole = centre_crop(IMAGES, size or 8)
    np.testing.assert_array_equal(seen, jnp.stack([whole, whole[:, :, ::-1]], axis=1))


@pytest.mark.parametrize(("padding", "border"), [(0, 1), (3, 3)])
def test_without_a_crop_size_the_crops_are_shifts_over_a_border(padding, border):
    crops = views(IMAGES, "five_crop", None, padding)
    assert crops.shape == (2, 5, 8, 8, 3)
    np.testing.assert_array_equal(crops[:, 4], IMAGES)
    np.testing.assert_array_equal(crops[:, 0, border:, border:], IMAGES[:, :-border, :-border])
    assert not crops[:, 0, :border].any()


def test_training_crops_are_windows_of_the_image_and_evaluation_takes_the_centre():
    pipeline = Pipeline((0.0,) * 3, (1 / 255,) * 3, 10, crop_size=7)
    image = jnp.tile(IMAGES[:1], (64, 1, 1, 1))
    batch = {"image": image, "label": jnp.zeros(64, int)}
    seen = np.asarray(pipeline(batch, KEY, train=True)["image"]).round()
    windows = [IMAGES[0, y : y + 7, x : x + 7] for y in (0, 1) for x in (0, 1)]
    which = [[np.array_equal(crop, window) for window in windows] for crop in seen]
    assert np.all(np.sum(which, axis=1) == 1)
    assert np.all(np.sum(which, axis=0) > 0)
    evaluated = pipeline(batch, train=False)["image"]
    np.testing.assert_allclose(evaluated[0], centre_crop(IMAGES[0], 7), atol=1e-3)


@pytest.mark.parametrize(
    ("loss", "head"), [("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid")]
)
def test_the_prediction_is_the_mean_of_the_predictions_for_each_crop(loss, head):
    def experiment(*overrides, side):
        config = composed("model=mlp", "model.hidden=[]", f"loss={loss}", *overrides)
        pipeline = Pipeline((0.5,) * 3, (0.5,) * 3, 4, crop_size=side)
        return Experiment(config, Spec((6, 6, 3), 4), pipeline, 1, 1)

    mask = {"label": jnp.array([1, 3]), "mask": jnp.ones(2)}
    averaged, plain = experiment("eval.tta=ten_crop", side=6), experiment(side=None)
    state = averaged.init({}, KEY)
    weights = (state.params, state.model_state)
    sums, found = averaged.eval_step(*weights, {"image": IMAGES} | mask, {})
    each = []
    for crop in jnp.moveaxis(views(IMAGES, "ten_crop", 6, 0), 1, 0):
        model = plain.trained_model({}, *weights)
        inputs = plain.prepare({"image": crop} | mask, {}, KEY, train=False)["image"]
        each.append(getattr(jax.nn, head)(model(inputs)))
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(found, mean, atol=1e-5)  # of a sigmoid as it is, no distribution
    assert float(sums["accuracy"]) == np.sum(mean.argmax(-1) == np.array([1, 3]))


def test_colour_noise_has_the_distribution_of_the_paper():
    mixed = jax.random.normal(KEY, (4000, 2, 2, 3)) @ jnp.array(
        [[0.2, 0.1, 0.0], [0.0, 0.1, 0.1], [0.0, 0.0, 0.05]]
    )
    images = (255 * jnp.clip(0.5 + mixed, 0, 1)).astype(jnp.uint8)
    batch = {"image": images, "label": jnp.zeros(4000, int)}
    plain = Pipeline((0.0,) * 3, (1.0,) * 3, 10)
    noisy = Pipeline((0.0,) * 3, (1.0,) * 3, 10, Augment(pca=0.5))
    noise = noisy(batch, KEY, train=True)["image"] - plain(batch, train=False)["image"]
    np.testing.assert_allclose(noise, noise[:, :1, :1] * jnp.ones((1, 2, 2, 1)), atol=1e-6)
    values, vectors = np.linalg.eigh(np.cov(np.asarray(images).reshape(-1, 3).T / 255))
    expected = 0.25 * (vectors * values**2) @ vectors.T  # Σ (0.5 λ)² p pᵀ
    found = np.cov(np.asarray(noise)[:, 0, 0].T)
    np.testing.assert_allclose(found, expected, atol=0.08 * expected.max())


def test_the_model_sees_the_crop_and_a_crop_must_fit():
    arguments = {"name": "digits", "input_shape": [8, 8, 1], "num_classes": 10}
    spec = TfdsImages(**arguments, crop_size=6).spec
    assert spec.input_shape == (6, 6, 1)
    assert spec.stored["image"] == ((8, 8, 1), "uint8")
    with pytest.raises(UserError, match=r"data\.crop_size=9 is more than the images have: 8x8"):
        _ = TfdsImages(**arguments, crop_size=9).spec


def test_streamed_pictures_to_be_cropped_keep_their_whole_middle_square():
    assert centre_box(640, 480, 1.0) == (80, 0, 560, 480)


def test_only_class_scores_can_be_averaged():
    with pytest.raises(UserError, match=r"eval\.tta is for the classification of images"):
        Averaged(lambda x: x, object())
