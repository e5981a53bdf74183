"""Random changes to a batch of images on the device, each image in a way of its own.

Images are float32 [B, H, W, C] in 0..1 wherever nothing else is said. Strengths may be traced.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from experiments.types import is_off

LEVELS = 30  # the largest magnitude of RandAugment
ERASED = 0.02, 0.4  # smallest and largest share of an image that is erased
SLIMMEST = 0.3  # ratio of the sides of what is erased

# the operations of RandAugment: changes of colour in the order of `_colours`, then of place
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = 8
OPERATIONS = COLOURS + len(GEOMETRIC) + 1  # the last one is the identity


# ------------------------------------------------------------------ place


def warp(images: Array, inverse: Array, shift: Array) -> Array:
    """Move the pixels of images about their centre, interpolated bilinearly; black comes in.

    Args:
        images: [B, H, W, C].
        inverse: the matrices [B, 2, 2] that turn the place (row, column) of a pixel of the result,
            less its shift, into its place in the image.
        shift: rows and columns by which the result is moved, [B, 2].
    """
    height, width = images.shape[1:3]
    centre = jnp.array([height - 1, width - 1]) / 2
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    offsets = places - centre - shift[:, None, None]
    rows, columns = (
        inverse[:, i, 0, None, None] * offsets[..., 0]
        + inverse[:, i, 1, None, None] * offsets[..., 1]
        + centre[i]
        for i in (0, 1)
    )

    def sample(channel: Array, rows: Array, columns: Array) -> Array:
        return map_coordinates(channel, [rows, columns], order=1, mode="constant")

    of_image = jax.vmap(sample, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(of_image)(images, rows, columns)


def turned(angle: Array) -> Array:
    """Return the inverse of a rotation, anticlockwise as seen, by angles [B] in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)


def move(images: Array, key: Array, rotation: Any, scale: Any, translation: Any) -> Array:
    """Rotate, scale and shift images at random; see `Augment`."""
    count, height, width, _ = images.shape
    draws = jax.random.uniform(key, (4, count), minval=-1.0, maxval=1.0)
    rotation, scale, translation = (0.0 if is_off(x) else x for x in (rotation, scale, translation))
    inverse = turned(jnp.radians(rotation) * draws[0]) / (1 + scale * draws[1])[:, None, None]
    shift = translation * draws[2:].T * jnp.array([height, width])
    return warp(images, inverse, shift)


def _box(key: Array, shape: Sequence[int], height: Any, width: Any) -> Array:
    """Return where boxes around random centres are, bool [B, H, W, 1], cut off at the border.

    Args:
        shape: of the images.
        height, width: of the boxes, one for all or [B, 1].
    """
    count = shape[0]
    key_row, key_column = jax.random.split(key)

    def span(key: Array, length: int, size: Any) -> Array:
        start = jax.random.randint(key, (count, 1), 0, length) - size // 2
        at = jnp.arange(length)
        return (at >= start) & (at < start + size)

    rows, columns = span(key_row, shape[1], height), span(key_column, shape[2], width)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def cutout(images: Array, key: Array, size: int) -> Array:
    """Set a square around a random centre to 0."""
    return jnp.where(_box(key, images.shape, size, size), 0, images)


def erase(images: Array, key: Array, probability: Any) -> Array:
    """Fill a rectangle with noise in a share of the images (Zhong et al. 2017, arXiv:1708.04896).

    Its area is uniform in `ERASED`, the logarithm of the ratio of its sides (each relative to the
    image's) in what fits, at most 1 / `SLIMMEST`.
    """
    count, height, width, _ = images.shape
    key_draws, key_noise = jax.random.split(key)
    chosen, share, ratio, top, left = jax.random.uniform(key_draws, (5, count))
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * share
    widest = -jnp.log(jnp.maximum(area, SLIMMEST))
    ratio = jnp.exp(widest * (2 * ratio - 1))

    def span(at: Array, share: Array, length: int) -> Array:
        size = jnp.clip(jnp.round(share * length), 1, length)[:, None]
        start = jnp.floor(at[:, None] * (length - size + 1))
        return (jnp.arange(length) >= start) & (jnp.arange(length) < start + size)

    rows = span(top, jnp.sqrt(area * ratio), height)
    columns = span(left, jnp.sqrt(area / ratio), width)
    inside = rows[:, :, None] & columns[:, None, :] & (chosen < probability)[:, None, None]
    return jnp.where(inside[..., None], jax.random.uniform(key_noise, images.shape), images)


# ------------------------------------------------------------------ colours


def luma(images: Array) -> Array:
    """Return the luma (ITU-R BT.601) of RGB images [B, H, W, 3], else the mean of the channels."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    weights = jnp.array([0.299, 0.587, 0.114], images.dtype)
    return (images * weights).sum(-1, keepdims=True)


def jitter(images: Array, key: Array, strength: Any) -> Array:
    """Scale brightness, contrast and saturation."""
    factors = jax.random.uniform(key, (3, images.shape[0], 1, 1, 1), minval=-1.0, maxval=1.0)
    brightness, contrast, saturation = 1 + strength * factors
    images = jnp.clip(images * brightness, 0, 1)
    average = luma(images).mean((1, 2), keepdims=True)
    images = jnp.clip(average + contrast * (images - average), 0, 1)
    grey = luma(images)
    return jnp.clip(grey + saturation * (images - grey), 0, 1)


def shift_colours(images: Array, key: Array, strength: Any) -> Array:
    """Add noise along the principal components of the colours to each image.

    The noise Σᵢ αᵢ λᵢ pᵢ, with normal αᵢ of standard deviation `strength` and the eigenvalues λᵢ
    and eigenvectors pᵢ of the colours' covariance C, is normal with the covariance
    strength² · Σᵢ λᵢ² pᵢ pᵢᵀ = strength² · C². So is strength · C z with a standard normal z, which
    needs no eigenvectors.
    """
    colours = images.reshape(-1, images.shape[-1])
    centred = colours - colours.mean(0)
    covariance = centred.T @ centred / len(colours)
    normal = jax.random.normal(key, (images.shape[0], images.shape[-1]))
    return images + (strength * normal @ covariance)[:, None, None]


def stretched(images: Array) -> Array:
    """Stretch each channel of each image to 0..1; one of a single value stays as it is."""
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return jnp.where(high > low, (images - low) / jnp.where(high > low, high - low, 1), images)


def equalized(images: Array) -> Array:
    """Make the values of each channel of each image, in 256 levels, equally frequent."""
    levels = jnp.round(images * 255).astype(jnp.int32)

    def one(levels: Array) -> Array:
        histogram = jnp.zeros(256, jnp.int32).at[levels].add(1)
        step = (len(levels) - histogram[levels.max()]) // 255
        below = jnp.cumsum(histogram) - histogram
        table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table, jnp.arange(256))[levels]

    flat = levels.reshape(len(images), -1, images.shape[-1])
    table = jax.vmap(jax.vmap(one, in_axes=-1, out_axes=-1))(flat)
    return table.reshape(images.shape).astype(images.dtype) / 255


def smoothed(images: Array) -> Array:
    """Average the 3 x 3 pixels around each, itself counted five times; the border stays."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * images[:, 1:-1, 1:-1]
    return images.at[:, 1:-1, 1:-1].set(total / 13)


# ------------------------------------------------------------------ several at once


def randaugment(images: Array, key: Array, magnitude: Any, operations: int) -> Array:
    """Change each image by so many operations, drawn from 14 (Cubuk et al. 2020, arXiv:1909.13719).

    The ranges are torchvision's, their ends at a magnitude of 30. Two operations that have no
    strength in the paper, autocontrast and equalise, are blended with the image by
    magnitude / 30, so that a magnitude of 0 changes nothing.
    """
    for own in jax.random.split(key, operations):
        images = _one_operation(images, own, jnp.asarray(magnitude, jnp.float32) / LEVELS)
    return images


def _one_operation(images: Array, key: Array, strength: Array) -> Array:
    count, height, width, _ = images.shape
    key_which, key_sign = jax.random.split(key)
    which = jax.random.randint(key_which, (count,), 0, OPERATIONS)
    amount = strength * jax.random.rademacher(key_sign, (count,), jnp.float32)
    changed = images
    for number, (other, blend) in enumerate(_colours(images, strength, amount)):
        mixed = images + jnp.reshape(blend, (-1, 1, 1, 1)) * (other - images)
        changed = jnp.where((which == number)[:, None, None, None], jnp.clip(mixed, 0, 1), changed)
    of = {
        name: jnp.where(which == COLOURS + number, amount, 0)
        for number, name in enumerate(GEOMETRIC)
    }
    shear = jnp.stack([0.3 * of["shear_y"], 0.3 * of["shear_x"]], -1)
    inverse = turned(jnp.radians(30) * of["rotate"]) + shear[:, :, None] * (1 - jnp.eye(2))
    shift = jnp.stack([height * of["translate_y"], width * of["translate_x"]], -1) * (150 / 331)
    moves = (which >= COLOURS) & (which < OPERATIONS - 1)
    return jnp.where(moves[:, None, None, None], warp(images, inverse, shift), changed)


def _colours(images: Array, strength: Array, amount: Array) -> list[tuple[Any, Any]]:
    """Return the other image of each operation on colours, and its share in the result."""
    grey, signed = luma(images), 0.9 * amount
    step = 2 ** jnp.round(4 * strength)  # 8 bits to 4
    posterized = jnp.floor(jnp.round(images * 255) / step) * step / 255
    return [
        (jnp.zeros_like(images), signed),  # brightness
        (grey.mean((1, 2), keepdims=True), signed),  # contrast
        (grey, signed),  # saturation
        (smoothed(images), signed),  # sharpness
        (posterized, 1.0),
        (jnp.where(images > 1 - strength, 1 - images, images), 1.0),  # solarised
        (stretched(images), strength),  # autocontrast
        (equalized(images), strength),
    ]


# ------------------------------------------------------------------ two examples in one


def mixup(images: Array, key: Array, alpha: Any) -> tuple[Array, Array]:
    """Blend every image with its neighbour in the batch, a random one as batches are shuffled.

    Returns:
        The images, and the share [B] of each one's own in it.
    """
    weight = jax.random.beta(key, alpha, alpha, (images.shape[0],))
    return blended(images, weight), weight


def cutmix(images: Array, key: Array, alpha: Any) -> tuple[Array, Array]:
    """Paste a box of its neighbour in the batch into every image (Yun et al. 2019, 1905.04899).

    Its share of the area is drawn from Beta(alpha, alpha), and what hangs over the border is cut
    off.

    Returns:
        The images, and the share [B] of each one's own area in it.
    """
    count, height, width, _ = images.shape
    key_share, key_place = jax.random.split(key)
    side = jnp.sqrt(jax.random.beta(key_share, alpha, alpha, (count, 1)))
    sizes = (jnp.floor(side * length).astype(jnp.int32) for length in (height, width))
    box = _box(key_place, images.shape, *sizes)
    return jnp.where(box, jnp.roll(images, 1, axis=0), images), 1 - box.mean((1, 2, 3))


def blended(values: Array, weight: Array) -> Array:
    """Return the mean of each row and its neighbour before it, by the share of the row's own."""
    own = weight.reshape(-1, *[1] * (values.ndim - 1))
    return own * values + (1 - own) * jnp.roll(values, 1, axis=0)


def mix(
    images: Array, key: Array, mixup_alpha: Any, cutmix_alpha: Any
) -> tuple[Array, Array | None]:
    """Mix images by `mixup`, by `cutmix`, or where both are on by either, at random.

    Returns:
        The images, and the share [B] of each one's own in it; None where neither is on.
    """
    ways = []
    if not is_off(mixup_alpha):
        ways.append(mixup(images, key, mixup_alpha))
    if not is_off(cutmix_alpha):
        ways.append(cutmix(images, jax.random.fold_in(key, 1), cutmix_alpha))
    if len(ways) < 2:
        return ways[0] if ways else (images, None)
    first = jax.random.bernoulli(jax.random.fold_in(key, 2), shape=(len(images),))
    (mixed, weight), (cut, area) = ways
    return jnp.where(first[:, None, None, None], mixed, cut), jnp.where(first, weight, area)
