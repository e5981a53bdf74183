"""The splits of prepared pictures: in memory where they fit, else streamed."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from experiments.data.cache import load_split
from experiments.data.prepared import Prepared


def open_splits(
    prepared: Prepared,
    parts: Mapping[str, tuple[str, np.ndarray | None]],
    *,
    image_size: int | None,
    whole: bool,
    stream: bool | None,
    resident_limit_mb: int,
    workers: int,
    cache_dir: str | None,
) -> dict[str, Any]:
    """Open train, validation and test, as `Arrays` or as `Stream`s.

    Args:
        parts: for each of them the split in the prepared data, and the indices of its examples, int
            [N], or None for all.
        image_size, whole: how streamed pictures are cropped; see `stream.open_split`.
        stream: None streams pictures with an `image_size` and data larger than `resident_limit_mb`.
        resident_limit_mb: decoded size in MiB of the largest data read into memory.
        workers: processes that decode pictures; 0 decodes in this process.
        cache_dir: folder of decoded data; None means the user's cache folder.

    Raises:
        UserError: there is no such split, files are missing, or they are damaged.
    """
    names = dict.fromkeys(split for split, _ in parts.values())
    if stream is None and image_size is None:
        size = math.prod(prepared.picture_shape) * sum(map(prepared.num_examples, names))
        stream = size > resident_limit_mb * 2**20
    if stream or image_size is not None:
        from experiments.data.stream import open_split  # imports Grain, which takes seconds

        read = partial(open_split, prepared, image_size=image_size, whole=whole, workers=workers)
        return {part: read(*chosen) for part, chosen in parts.items()}
    resident = {split: load_split(prepared, split, cache_dir, workers) for split in names}
    return {
        part: resident[split] if indices is None else resident[split].take(indices)
        for part, (split, indices) in parts.items()
    }
