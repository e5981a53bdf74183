"""Whole splits as arrays: decoded on all cores, once."""

import itertools
import logging
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from experiments.data import records
from experiments.data.cache import cached
from experiments.data.dataset import Arrays
from experiments.data.prepared import Prepared, cache_dir
from experiments.errors import UserError
from experiments.machine import cores

log = logging.getLogger(__name__)

SHARE = (
    4096  # examples worth a process of their own: starting one costs as much as 0.2 s of decoding
)
LOG_SECONDS = 10.0


def load_split(prepared: Prepared, split: str, cache: str | None) -> Arrays:
    """A split whose pictures all have one shape, from the cache or decoded into it.

    Args:
        cache: see `cache_dir`.

    Raises:
        UserError: there is no such split, or the prepared files are damaged.
    """
    count = prepared.num_examples(split)
    folder = cache_dir(cache) / prepared.name / prepared.info["version"] / prepared.fingerprint
    arrays = cached(
        folder / split,
        make=lambda: decode_split(prepared, split),
        shapes={"image": (count, *_shape(prepared)), "label": (count,)},
    )
    return Arrays(arrays)


def decode_split(prepared: Prepared, split: str) -> dict[str, np.ndarray]:
    """Decodes a split of pictures that all have the shape `prepared.picture_shape`.

    Python threads do not help (Pillow holds the interpreter's lock for pictures this small), so the
    work is shared by processes. They are plain subprocesses: a fork would copy JAX's threads, and
    `multiprocessing`'s other methods would import the user's main module again in each.

    Returns:
        "image", uint8 [N, H, W, C], and "label", int32 [N].

    Raises:
        UserError: the prepared files are damaged.
    """
    started = time.monotonic()
    shape = _shape(prepared)
    shards = [str(path) for path in prepared.shards(split)]
    count = prepared.num_examples(split)
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int32)

    processes = min(cores(), -(-count // SHARE))
    log.info("Decoding %s %s: %d pictures", prepared.name, split, count)
    try:
        if processes == 1:
            at = 0
            for image, label in records.decode(shards, 0, count, shape):
                images[at : at + len(label)], labels[at : at + len(label)] = image, label
                at += len(label)
        else:
            bounds = np.linspace(0, count, processes + 1).astype(int).tolist()
            with ThreadPoolExecutor(processes) as pool:
                parts = [
                    pool.submit(_decode_part, shards, start, images[start:stop], labels[start:stop])
                    for start, stop in itertools.pairwise(bounds)
                ]
                _wait(parts, f"{prepared.name} {split}", started)
    except ValueError as error:
        raise UserError(
            f"prepared data cannot be read: {error}\n"
            f"Remove {prepared.folder} and prepare it again: make data DATA={prepared.name}"
        ) from error
    log.info("Decoded %s %s in %.1f s", prepared.name, split, time.monotonic() - started)
    return {"image": images, "label": labels}


def _shape(prepared: Prepared) -> tuple[int, int, int]:
    height, width, channels = prepared.picture_shape
    if height is None or width is None:
        raise ValueError(f"the pictures of {prepared.name} differ in size")
    return height, width, channels


def _decode_part(shards: list[str], start: int, images: np.ndarray, labels: np.ndarray) -> None:
    """Fills `images` and `labels` with the examples from `start` on, by one other process."""
    numbers = [start, start + len(labels), *images.shape[1:]]
    command = [sys.executable, "-P", records.__file__, *map(str, numbers), *shards]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        at = 0
        while header := process.stdout.read(4):
            high = at + int(np.frombuffer(header, np.int32)[0])
            process.stdout.readinto(images[at:high].data.cast("B"))  # type: ignore[attr-defined]
            process.stdout.readinto(labels[at:high].data.cast("B"))  # type: ignore[attr-defined]
            at = high
        message = process.stderr.read().decode(errors="replace").strip()
    last = message.splitlines()[-1] if message else "no message; was it out of memory?"
    if process.returncode == records.DAMAGED:
        raise ValueError(last)
    if process.returncode != 0:
        raise UserError(f"a decoding process ended with code {process.returncode}: {last}")


def _wait(parts: list[Future], what: str, started: float) -> None:
    """Waits for the parts, with a line in the log now and then, and raises their first error."""
    pending = set(parts)
    while pending:
        done, pending = wait(pending, timeout=LOG_SECONDS)
        for part in done:
            part.result()
        if not done:
            log.info("Still decoding %s, %.0f s so far", what, time.monotonic() - started)
