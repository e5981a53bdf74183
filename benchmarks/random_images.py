"""Images of noise in the shape of a data set, so that steps are timed without any data."""

from dataclasses import dataclass

import numpy as np

from experiments.data.dataset import Arrays, Splits
from experiments.data.images import TfdsImages


@dataclass(frozen=True)
class RandomImages(TfdsImages):
    """Takes the place of `TfdsImages` in a config: `limit` images for training, 256 to hold out."""

    def load(self) -> Splits:
        """Images uint8 [N, H, W, C] and labels."""
        assert self.limit is not None
        train, validation, test = (self._noise(size) for size in (self.limit, 256, 256))
        return Splits(train, validation, test, class_names=(), fingerprint="noise")

    def _noise(self, size: int) -> Arrays:
        shape, classes = self.spec.input_shape, self.spec.num_classes
        random = np.random.default_rng(size)
        images = random.integers(0, 256, (size, *shape), np.uint8)
        return Arrays({"image": images, "label": random.integers(0, classes, size, np.int32)})
