"""Crops in training and evaluation, the mean over several of them, and noise of colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.experiment import Experiment
from experiments.data.augment import Augment, Pipeline
from experiments.data.crops import Averaged, centre_crop, views
from experiments.data.dataset import Spec
from experiments.data.stream import centre_box
from experiments.data.tfds_images import TfdsImages
from experiments.errors import UserError
from support import composed

KEY = jax.random.key(0)
IMAGES = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.uint8).reshape(2, 8, 8, 3)


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
    averaged, single = experiment("eval.tta=ten_crop", side=6), experiment(side=None)
    state = averaged.init({}, KEY)
    weights = (state.params, state.model_state)
    sums, found = averaged.eval_step(*weights, {"image": IMAGES} | mask, {})
    each = []
    for crop in jnp.moveaxis(views(IMAGES, "ten_crop", 6, 0), 1, 0):
        # a bare sigmoid: `predictions` makes a distribution of it, which is not what is averaged
        model = single._with({}, *weights, train=False)
        inputs = single.prepare({"image": crop} | mask, {}, KEY, train=False)["image"]
        each.append(getattr(jax.nn, head)(model(inputs)))
    mean = np.mean(each, axis=0)
    np.testing.assert_allclose(found, mean / mean.sum(-1, keepdims=True), atol=1e-5)
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
    assert spec.example["image"] == ((8, 8, 1), "uint8")
    with pytest.raises(UserError, match=r"data\.crop_size=9 is more than the images have: 8x8"):
        _ = TfdsImages(**arguments, crop_size=9).spec


def test_streamed_pictures_to_be_cropped_keep_their_whole_middle_square():
    assert centre_box(640, 480, 1.0) == (80, 0, 560, 480)


def test_only_class_scores_can_be_averaged():
    with pytest.raises(UserError, match=r"eval\.tta is for the classification of images"):
        Averaged(lambda x: x, object())
