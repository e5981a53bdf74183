"""Digits of which few have a label, as files that `data=arrays` reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import compose
from experiments.core.config import build


def digits(*splits: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [N, 8, 8, 1], and the labels [N] of splits of the digits."""
    loaded = build(compose("data=digits")["data"]).load()
    parts = [getattr(loaded, split).arrays for split in splits]
    images, labels = ([part[name] for part in parts] for name in ("image", "label"))
    return np.concatenate(images), np.concatenate(labels)


def write_labelled(file: Path, classes: Sequence[int], each: int | None, draw: int) -> None:
    """Write training images of some classes, and all images of theirs that are held out.

    Args:
      each: images of each class; None: all.
      draw: seed that decides which these are.
    """
    images, labels = digits("train")
    unseen, wanted = digits("validation", "test")
    rng = np.random.default_rng(draw)
    own = [rng.permutation(np.flatnonzero(labels == one))[:each] for one in classes]
    rows, there = np.concatenate(own), np.isin(wanted, classes)
    held_out: dict[str, Any] = {f"x_{part}": unseen[there] for part in ("val", "test")}
    held_out |= {f"y_{part}": wanted[there] for part in ("val", "test")}
    np.savez(file, x_train=images[rows], y_train=labels[rows], **held_out)
