"""Crops of images, and evaluation by the mean over several of them (test-time augmentation)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.errors import UserError

Crops = Literal["flip", "five_crop", "ten_crop"]


@dataclass(frozen=True)
class Evaluation:
    """The keys of `eval`.

    Args:
      tta: evaluate by the mean prediction over each image and its mirror image (`flip`), or over
        its four corners and its centre, and with `ten_crop` their mirror images too (Krizhevsky et
        al. 2012, section 4.1).
    """

    tta: Crops | None


def centre_crop(images: jax.Array, size: int) -> jax.Array:
    """The middle of images: [..., H, W, C] to [..., size, size, C]."""
    top, left = ((n - size) // 2 for n in images.shape[-3:-1])
    return images[..., top : top + size, left : left + size, :]


def views(images: jax.Array, kind: Crops, size: int | None, padding: int) -> jax.Array:
    """Two, five or ten crops of each image: [batch, H, W, C] to [batch, crops, h, w, C].

    They have `size` pixels a side. None means the size of the image, out of which corners then get
    by `padding` pixels of black border, as in training, or where that is 0 by a sixteenth of its
    side.
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


class Averaged:
    """A model that reads several views of each example and gives the outputs that are their mean.

    [batch, views, ...] to what the model gives for [batch, ...]. The views are computed one after
    the other, so that they take no more memory than one. What the mean of outputs is, the
    objective says: its `average` takes [views, batch, ...].
    """

    def __init__(self, model: Callable, objective: Any):
        if not hasattr(objective, "average"):
            raise UserError("eval.tta is for the classification of images; use eval.tta=null")
        self.model, self.average = model, objective.average

    def __call__(self, x: jax.Array, **arguments: Any) -> jax.Array:
        outputs = jax.lax.map(lambda view: self.model(view, **arguments), jnp.moveaxis(x, 1, 0))
        return self.average(outputs)
