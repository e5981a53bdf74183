"""The pipeline of images from stored to model input: normalisation, augmentation, crops.

All of it is pure JAX and runs inside the jitted step, on the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.image import resize as image_resize  # as it is, whatever a converter puts in its place

from experiments.data import augmentation
from experiments.errors import UserError
from experiments.types import (
    Bound,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    is_off,
)

Batch = Mapping[str, Any]
Crops = Literal["flip", "five_crop", "ten_crop"]
Magnitude = Annotated[float, Bound("at least", 0), Bound("at most", augmentation.LEVELS)]


@dataclass(frozen=True)
class Evaluation:
    """The keys of `eval`.

    Args:
        tta: evaluate by the mean prediction over each image and its mirror image (`flip`), or over
            its four corners and its centre, and with `ten_crop` their mirror images too (Krizhevsky
            et al. 2012, section 4.1): test-time augmentation. None evaluates the image alone.
    """

    tta: Crops | None


@dataclass(frozen=True)
class Augment:
    """The random changes to training images, every one off by default.

    All randomness is per example. They happen in this order: crop and mirror, move, RandAugment,
    colours, erasing, normalisation, cutout, and last two examples in one. The strengths that are
    no whole numbers may be traced scalars; a plain 0 or None turns them off.

    Args:
        crop_padding: pixels of black border, out of which the original size is cropped (ResNet,
            arXiv:1512.03385, section 4.2).
        flip: mirror left to right with probability 1/2.
        cutout: side in pixels of a square, centred anywhere, that is set to the channel mean and
            cut off at the border (arXiv:1708.04552).
        mixup: alpha of the Beta(alpha, alpha) from which the weight between two images and their
            labels is drawn (arXiv:1710.09412).
        jitter: strength s: brightness, contrast and saturation are scaled by factors uniform in
            [1 - s, 1 + s], in this order.
        pca: standard deviation of the multiples of each principal component of the colours, times
            its eigenvalue, that are added to all pixels of an image (Krizhevsky et al. 2012,
            section 4.1). The components are those of the batch, not of the whole training set.
        rotation: largest angle in degrees, either way.
        scale: strength s: the size is multiplied by a factor uniform in [1 - s, 1 + s].
        translation: largest shift, either way, as a share of the height and of the width. What
            these three bring in from outside is black.
        randaugment: magnitude, up to 30, of `randaugment_operations` operations, drawn from 14
            (arXiv:1909.13719).
        random_erasing: share of the images in which a rectangle is filled with noise
            (arXiv:1708.04896).
        cutmix: alpha of the Beta(alpha, alpha) from which the area of a box is drawn that another
            image fills, which counts by its area in the label too (arXiv:1905.04899). With `mixup`
            beside it each image has either, at random.
    """

    crop_padding: NonNegativeInt = 0
    flip: bool = False
    cutout: NonNegativeInt = 0
    mixup: NonNegative | None = 0.0
    jitter: NonNegative | None = 0.0
    pca: NonNegative | None = 0.0
    rotation: NonNegative | None = 0.0
    scale: Decay | None = 0.0
    translation: Fraction | None = 0.0
    randaugment: Magnitude | None = 0.0
    randaugment_operations: PositiveInt = 2
    random_erasing: Fraction | None = 0.0
    cutmix: NonNegative | None = 0.0


@dataclass(frozen=True)
class Pipeline:
    """The steps from stored images to model input: crop, scale, augment, normalise.

    Args:
        mean, std: per channel, for pixels in 0..1.
        num_classes: length of the one-hot targets that mixup and cutmix make.
        augment: changes to training images.
        crop_size: side of random crops in training and of the centre crop in evaluation; None
            leaves images as large as they are.
        tta: crops of each image to evaluate; see `Evaluation`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    augment: Augment = Augment()
    crop_size: int | None = None
    tta: Crops | None = None

    def __call__(self, batch: Batch, key: Array | None = None, *, train: bool) -> dict[str, Any]:
        """Prepare a batch.

        Args:
            batch: "image" uint8 [B, H, W, C], or numbers in 0..255; perhaps "label" int [B] or
                "target" [B, K]; anything else is passed on.
            key: source of all randomness; not used, and may be None, unless `train`.
            train: augment the images.

        Returns:
            "image" float32 [B, H, W, C], or with `tta` in evaluation [B, crops, H, W, C], and
            "label": int [B] as given, or with mixup and cutmix in training float32
            [B, num_classes], each row summing to 1. Numbers to predict are mixed alike.
        """
        images = batch["image"]
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        if not train:
            if self.tta is not None:
                images = views(images, self.tta, self.crop_size, self.augment.crop_padding)
            elif self.crop_size is not None:
                images = centre_crop(images, self.crop_size)
            return {**batch, "image": (_unit(images) - mean) / std}
        if key is None:
            raise ValueError("augmentation needs a key")
        augment = self.augment
        keys = iter(jax.random.split(key, 4))
        size = (self.crop_size,) * 2 if self.crop_size else images.shape[1:3]
        images = crop_and_flip(images, next(keys), size, augment.crop_padding, augment.flip)
        images = _unit(images)
        key_jitter, key_cutout, key_mix = keys
        key_move, key_randaugment, key_erase = jax.random.split(jax.random.fold_in(key, 4), 3)
        moves = (augment.rotation, augment.scale, augment.translation)
        if not all(map(is_off, moves)):
            images = augmentation.move(images, key_move, *moves)
        if not is_off(augment.randaugment):
            chosen = (augment.randaugment, augment.randaugment_operations)
            images = augmentation.randaugment(images, key_randaugment, *chosen)
        if not is_off(augment.jitter):
            images = augmentation.jitter(images, key_jitter, augment.jitter)
        if not is_off(augment.pca):
            key_colours = jax.random.fold_in(key_jitter, 1)
            images = augmentation.shift_colours(images, key_colours, augment.pca)
        if not is_off(augment.random_erasing):
            images = augmentation.erase(images, key_erase, augment.random_erasing)
        images = (images - mean) / std  # from here on 0 is the mean
        if augment.cutout:
            images = augmentation.cutout(images, key_cutout, augment.cutout)
        images, own = augmentation.mix(images, key_mix, augment.mixup, augment.cutmix)
        targets = {name: batch[name] for name in ("label", "target") if name in batch}
        if own is not None:
            if "label" in targets:
                targets["label"] = jax.nn.one_hot(targets["label"], self.num_classes)
            targets = {name: augmentation.blended(t, own) for name, t in targets.items()}
        return {**batch, "image": images, **targets}


class RowPipeline(Pipeline):
    """The pipeline of images that a model reads row by row."""

    def __call__(self, batch: Batch, key: Array | None = None, *, train: bool) -> dict[str, Any]:
        """Prepare a batch with `sequence` float32 [B, H, W · C] in place of `image`."""
        prepared = super().__call__(batch, key, train=train)
        image = prepared.pop("image")
        return {"sequence": image.reshape(*image.shape[:-2], -1), **prepared}


def resize(images: Array, shape: Sequence[int]) -> Array:
    """Resize [..., H, W, C] bilinearly to [..., *shape, C], antialiased when shrinking."""
    target = (*images.shape[:-3], *shape, images.shape[-1])
    return image_resize(images, target, method="bilinear")


def _unit(images: Array) -> Array:
    return images.astype(jnp.float32) / 255


def crop_and_flip(
    images: Array, key: Array, size: Sequence[int], padding: int, flip: bool
) -> Array:
    """Crop the padded images at random and mirror each or not, by selecting rows, then columns.

    XLA's CPU backend runs that faster than `dynamic_slice` under `vmap` (benchmarks/augment.py).

    Args:
        images: [B, H, W, C].
        size: (height, width) of the crops.
        padding: pixels of black border that are added first.
        flip: mirror each with probability 1/2.
    """
    count, (height, width) = images.shape[0], size
    key_row, key_column, key_flip = jax.random.split(key, 3)
    rows, cropped = (n + 2 * padding - m + 1 for n, m in zip(images.shape[1:3], size, strict=True))
    if padding:
        pad = (padding, padding)
        images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    if rows > 1:
        top = jax.random.randint(key_row, (count, 1), 0, rows)
        images = _take(images, top + jnp.arange(height), axis=1)
    columns = jnp.broadcast_to(jnp.arange(width), (count, width))
    if flip:
        mirrored = jax.random.bernoulli(key_flip, shape=(count, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    if cropped > 1:
        columns += jax.random.randint(key_column, (count, 1), 0, cropped)
    return _take(images, columns, axis=2) if cropped > 1 or flip else images


def _take(images: Array, indices: Array, axis: int) -> Array:
    """Select rows (axis 1) or columns (axis 2) of each image; indices int [B, n], in bounds."""
    indices = jnp.expand_dims(indices, (3 - axis, 3))
    return jnp.take_along_axis(images, indices, axis, mode="promise_in_bounds")


def centre_crop(images: Array, size: int) -> Array:
    """Cut out the middle of images: [..., H, W, C] to [..., size, size, C]."""
    top, left = ((n - size) // 2 for n in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]


def views(images: Array, kind: Crops, size: int | None, padding: int) -> Array:
    """Cut out two, five or ten crops of each image: [B, H, W, C] to [B, crops, h, w, C].

    Args:
        kind: see `Evaluation`.
        size: side of a crop. None means the size of the image, which then gets a black border for
            its corners to differ.
        padding: pixels of that border, as in training; 0 means a sixteenth of the image's side.
    """
    if kind == "flip":
        crop = images if size is None else centre_crop(images, size)
        return jnp.stack([crop, crop[:, :, ::-1]], axis=1)
    height, width = images.shape[1:3]
    if size is None:
        border = padding or max(1, round(min(height, width) / 16))
        images = jnp.pad(images, [(0, 0), (border, border), (border, border), (0, 0)])
    else:
        height = width = size
    bottom, right = images.shape[1] - height, images.shape[2] - width
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = [images[:, y : y + height, x : x + width] for y, x in places]
    if kind == "ten_crop":
        crops += [crop[:, :, ::-1] for crop in crops]
    return jnp.stack(crops, axis=1)


def scaled(pipeline: Any, low: float, high: float, *, channels: int) -> Any:
    """Return a pipeline with images between two numbers in the place of normalised ones."""
    mean, std = (-low / (high - low),) * channels, (1 / (high - low),) * channels
    return replace(pipeline, mean=mean, std=std)


class Averaged:
    """A model that reads several views of each example, [B, views, ...], and averages its outputs.

    The views are computed one after the other, so that they take no more memory than one.

    Args:
        model: reads [B, ...].
        objective: its `average` takes the outputs [views, B, ...] and returns their mean [B, ...].

    Raises:
        UserError: the objective has no `average`.
    """

    def __init__(self, model: Callable, objective: Any):
        if not hasattr(objective, "average"):
            raise UserError("eval.tta is for the classification of images; use eval.tta=null")
        self.model, self.average = model, objective.average
        self.__signature__ = inspect.signature(model)  # it takes what the model does

    def __call__(self, x: Array, **arguments: Any) -> Array:
        outputs = jax.lax.map(lambda view: self.model(view, **arguments), jnp.moveaxis(x, 1, 0))
        return self.average(outputs)
