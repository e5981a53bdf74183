"""Pictures as sequences: a row of pixels a step."""

from dataclasses import dataclass
from typing import Any

import jax

from experiments.data.augment import Pipeline
from experiments.data.dataset import Spec
from experiments.data.tfds_images import TfdsImages


class RowPipeline(Pipeline):
    """What images go through, and then their rows."""

    def __call__(self, batch: Any, key: jax.Array | None = None, *, train: bool) -> dict[str, Any]:
        """`sequence` float32 [B, H, W · C] in place of `image`; see `Pipeline`."""
        prepared = super().__call__(batch, key, train=train)
        image = prepared.pop("image")
        return {"sequence": image.reshape(*image.shape[:-2], -1), **prepared}


@dataclass(frozen=True, kw_only=True)
class TfdsRows(TfdsImages):
    """Labelled images from TFDS, read row by row; see `TfdsImages`."""

    @property
    def spec(self) -> Spec:
        image = super().spec
        height, width, channels = image.input_shape
        rows = (height, width * channels)
        return Spec(rows, image.num_classes, image.train_examples, image.example)

    @property
    def pipeline(self) -> RowPipeline:
        """What the training step applies to each batch."""
        images = super().pipeline
        return RowPipeline(
            images.mean, images.std, images.num_classes, images.augment, images.crop_size
        )
