"""Splits in memory: decoded once, and stored as files that later starts map into memory."""

import contextlib
import json
import logging
import multiprocessing
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from experiments.data.dataset import Arrays
from experiments.data.prepared import Prepared
from experiments.errors import UserError
from experiments.machine import expanded, user_cache, whole, write_whole

log = logging.getLogger(__name__)

WORTH_PROCESSES = 8192  # fewer examples are decoded sooner than processes have started
LOG_SECONDS = 10.0
DIGESTS = "crc32.json"  # the CRC-32 of the file of each array


def load_split(prepared: Prepared, split: str, cache: str | None, workers: int) -> Arrays:
    """Return a split whose pictures all have one shape, from the cache or decoded into it.

    Args:
        cache: folder of decoded data; None means the user's cache folder.
        workers: see `decode_split`.

    Raises:
        UserError: there is no such split, or the prepared files are damaged.
    """
    folder = expanded(cache) if cache else user_cache()
    arrays = cached(
        folder / prepared.name / prepared.folder.name / prepared.fingerprint / split,
        make=lambda: decode_split(prepared, split, workers),
    )
    return Arrays(arrays)


def decode_split(prepared: Prepared, split: str, workers: int) -> dict[str, np.ndarray]:
    """Decode a split whose pictures all have one shape.

    Args:
        workers: processes that share the work where it is worth starting them; 0 decodes in this
            process. Threads would not help: Pillow holds the interpreter's lock.

    Returns:
        "image", uint8 [N, H, W, C], and "label", int32 [N].

    Raises:
        UserError: the prepared files are damaged, or a process ended early.
    """
    # these import array_record, needed only to decode
    from experiments.data.records import Records, begin_decoding

    records = Records(prepared, split)
    images = np.empty((len(records), *prepared.picture_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    started = said = time.monotonic()
    log.info("Decoding %s %s: %d pictures", prepared.name, split, len(records))
    with contextlib.ExitStack() as stack:
        decoded: Iterator = map(records.chunk, records.chunks)
        if workers > 1 and len(records) >= WORTH_PROCESSES:
            spawn = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
            pool = ProcessPoolExecutor(workers, spawn, initializer=begin_decoding)
            decoded = stack.enter_context(pool).map(records.chunk, records.chunks)
        try:
            for (start, stop), part in zip(records.chunks, decoded, strict=True):
                images[start:stop], labels[start:stop] = part
                if time.monotonic() - said > LOG_SECONDS:
                    said = time.monotonic()
                    log.info("Decoded %d of %d pictures", stop, len(records))
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that decodes {prepared.name} ended early; was it out of memory? "
                f"Use fewer: data.workers"
            ) from error
    log.info("Decoded %s %s in %.1f s", prepared.name, split, time.monotonic() - started)
    return {"image": images, "label": labels}


def cached(folder: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays stored in `folder`; make and store them where they are not there unharmed.

    Args:
        folder: holds one `.npy` file per array, and their digests. Its path must identify the
            contents.
        make: makes the arrays.

    Returns:
        Read-only memory-mapped arrays, or those just made where `folder` cannot be written.
    """
    if (arrays := _open(folder)) is not None:
        return arrays
    made = make()
    try:
        _store(folder, made)
    except OSError as error:  # unwritable, or the disk is full: training itself needs no cache
        log.warning("Cannot cache decoded data in %s (%s): each start will decode", folder, error)
        return made
    return _open(folder) or made


def _open(folder: Path) -> dict[str, np.ndarray] | None:
    """Return the stored arrays, or None where there are none or they are damaged."""
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        for name, digest in digests.items():
            if _digest(folder / f"{name}.npy") != digest:
                raise ValueError(f"{name}.npy is damaged")
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in digests}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError) as error:
        log.warning("Decoded data in %s cannot be read (%s): made again", folder, error)
        return None


def _store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write each array whole, then the digests of all.

    What was there before stays valid for those who have it open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, array in arrays.items():
        with whole(folder / f"{name}.npy") as fresh:
            np.save(fresh, array)
            digests[name] = _digest(fresh)
    write_whole(folder / DIGESTS, json.dumps(digests))


def _digest(path: Path) -> int:
    return zlib.crc32(np.memmap(path, mode="r").data)
