"""Splits in memory: decoded once, and stored as files that later starts map into memory."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.data.dataset import Arrays, Pictures
from experiments.errors import UserError
from experiments.machine import end_with, expanded, user_cache, whole, write_whole

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

WORTH_PROCESSES = 8192  # fewer examples are decoded sooner than processes have started,
WORTH_BYTES = 2**26  # unless they are large
AHEAD = 4  # tasks for each process that wait for it, or for their result to be taken
LOG_SECONDS = 10.0
DIGESTS = "crc32.json"  # the CRC-32 of the file of each array


def load_split(data: Pictures, split: str, cache: str | None, workers: int) -> Arrays:
    """Return a split whose pictures all have one shape, from the cache or decoded into it.

    Args:
        cache: folder of decoded data; None means the user's cache folder.
        workers: see `decode_split`.

    Raises:
        UserError: there is no such split, or the files are damaged.
    """
    folder = cache_folder(cache) / data.cache_key / split
    return Arrays(cached(folder, make=lambda: decode_split(data, split, workers)))


def cache_folder(cache: str | None) -> Path:
    """Return the folder of decoded data; None means the user's cache folder."""
    return expanded(cache) if cache else user_cache()


def decode_split(data: Pictures, split: str, workers: int) -> dict[str, np.ndarray]:
    """Decode a split whose pictures all have one shape.

    Args:
        workers: processes that share the work where it is worth starting them; 0 decodes in this
            process.

    Returns:
        "image", uint8 [N, H, W, C], and "label", int32 [N].

    Raises:
        UserError: the files are damaged, or a process ended early.
    """
    records = data.records(split)
    images = np.empty((len(records), *data.picture_shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    started = time.monotonic()
    log.info("Decoding %s %s: %d pictures", data.name, split, len(records))
    if not worth_processes(len(records), records.size):
        workers = 0
    decoded = in_parallel(records.chunk, records.chunks, workers, data.name)
    for (start, stop), part in zip(records.chunks, said(decoded, records.chunks), strict=True):
        images[start:stop], labels[start:stop] = part
    log.info("Decoded %s %s in %.1f s", data.name, split, time.monotonic() - started)
    return {"image": images, "label": labels}


def worth_processes(examples: int, size: int) -> bool:
    """Return whether so many examples, of so many bytes in all, are decoded sooner by processes."""
    return examples >= WORTH_PROCESSES or size >= WORTH_BYTES


def in_parallel(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, name: str
) -> Iterator[Result]:
    """Yield the result of each task in order, computed by processes, or in this one without.

    Threads would not help: Pillow holds the interpreter's lock.

    Raises:
        UserError: a process that decodes the data `name` ended early.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
    with ProcessPoolExecutor(workers, spawn, initializer=begin_decoding) as pool:
        try:
            pending: deque[Future] = deque()
            for task in tasks:
                pending.append(pool.submit(function, task))
                if len(pending) > AHEAD * workers:  # so that results do not pile up
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that decodes {name} ended early; was it out of memory? "
                f"Use fewer: data.workers"
            ) from error


def begin_decoding(*_: Any) -> None:
    """Prepare a process that decodes: it ends with its parent, and leaves Ctrl-C to that.

    The devices are for its parent: code of the user's own that calls JAX here has the processor.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if (jax := sys.modules.get("jax")) is not None:
        jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with(parent.pid, signal.SIGKILL)


def said(results: Iterable[Result], chunks: list[tuple[int, int]]) -> Iterator[Result]:
    """Yield results; log every few seconds how many pictures of all are done.

    Args:
        chunks: (start, stop) of the pictures that each result is of.
    """
    before = time.monotonic()
    for (_, stop), result in zip(chunks, results, strict=True):
        yield result
        if time.monotonic() - before > LOG_SECONDS:
            before = time.monotonic()
            log.info("Decoded %d of %d pictures", stop, chunks[-1][1])


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
