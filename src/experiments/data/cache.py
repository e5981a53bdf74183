"""Decoded splits kept as memory-mapped files, so that only the first start has to decode."""

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


def cached(
    folder: Path, make: Callable[[], dict[str, np.ndarray]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays stored in `folder`; made and stored where they are not there in full.

    Args:
        folder: holds one `.npy` file an array. Its path must identify the contents.
        make: makes the arrays.
        shapes: name and shape of every array; anything else in `folder` counts as damaged.

    Returns:
        Read-only memory-mapped arrays, or those just made where `folder` cannot be written.
    """
    if (arrays := _open(folder, shapes)) is not None:
        return arrays
    made = make()
    try:
        _store(folder, made)
    except OSError as error:  # unwritable, or the disk is full: the run itself needs no cache
        log.warning("Cannot keep decoded data in %s (%s): each start will decode", folder, error)
        return made
    return _open(folder, shapes) or made


def _open(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """The stored arrays, or None where there are none or they are damaged."""
    if not folder.is_dir():
        return None
    try:
        # To map a file shorter than its header says is an error, so a truncated one shows here.
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    except (OSError, ValueError, EOFError) as error:
        log.warning("Decoded data in %s is damaged (%s): made again", folder, error)
        return None
    if any(arrays[name].shape != shape for name, shape in shapes.items()):
        log.warning("Decoded data in %s is of another shape: made again", folder)
        return None
    return arrays


def _store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    fresh = scratch_folder(folder)
    try:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def scratch_folder(folder: Path) -> Path:
    """A new folder beside `folder`, to be filled and then put in its place."""
    fresh = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    fresh.mkdir(parents=True)
    return fresh


def replace_folder(fresh: Path, folder: Path) -> None:
    """Puts the finished `fresh` in the place of `folder`: others see all of it or nothing.

    Two processes may do so at once; what was there before stays valid for those who have it open.
    """
    try:
        os.rename(fresh, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        aside = fresh.with_name(f"{fresh.name}-old")
        os.rename(folder, aside)
        os.rename(fresh, folder)
        shutil.rmtree(aside, ignore_errors=True)
