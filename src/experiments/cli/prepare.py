"""Download and prepare a data set: `python -m experiments.cli.prepare mnist [--dir FOLDER]`.

The same as `make data DATA=mnist`. Only this needs a network and TensorFlow (the extra `prepare`).
"""

import argparse
import contextlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data.reading.cache import load_split
from experiments.data.reading.prepared import FORMAT, SHIPPED, Prepared, check_name, data_dir, find
from experiments.errors import UserError
from experiments.machine import ensure_home

NETWORK_SECONDS = 5.0


def prepare(name: str, directory: Path) -> Prepared:
    """Return the data set `name` in `directory`; prepare it there if it is not yet.

    The digits are shipped with this package and stay there.

    Raises:
        UserError: it is unknown, TensorFlow or the network is missing, downloading or preparing
            failed, or the folder cannot be written.
    """
    if found := find(name, None, directory, None) or find(name, None, SHIPPED, None):
        return found
    check_name(name, directory)
    try:
        _download(name, directory)
    except OSError as error:
        raise UserError(f"data set {name!r} cannot be written to {directory}: {error}") from error
    found = find(name, None, directory, None)
    if found is None:
        raise UserError(f"TFDS prepared {name!r}, but not in {directory / name}")
    return found


def _download(name: str, directory: Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing {name!r} needs TensorFlow (using it later does not): "
            f"pip install 'experiments[prepare]'"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=str(directory), file_format=FORMAT)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # ValueError: no such config
        raise UserError(f"TFDS has no data set {name!r}: {_first_line(error)}") from error
    downloads = directory / "downloads"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (downloads / "manual").is_dir():
        raise UserError(
            f"data set {name!r} has to be downloaded by hand, into {downloads / 'manual'}:\n"
            f"see https://www.tensorflow.org/datasets/catalog/{builder.name}"
        )
    if builder.url_infos and not downloads.is_dir():
        _check_network(next(iter(builder.url_infos)))
    try:
        builder.download_and_prepare()
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"TFDS cannot prepare {name!r}: {_first_line(error)}") from error


def _check_network(url: str) -> None:
    """Raise a `UserError` where `url` does not answer; TFDS itself would retry for minutes.

    Any answer counts. The thread is there because no timeout covers the look-up of a host's name.
    """
    import requests

    answers = []

    def ask() -> None:
        with contextlib.suppress(requests.RequestException):
            answers.append(requests.head(url, timeout=NETWORK_SECONDS))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    if not answers:
        raise UserError(
            f"no network: {url} does not answer.\nPrepare the data where there is one and copy the "
            f"folder, or set TFDS_DATA_DIR to one that has the data"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def describe(prepared: Prepared) -> str:
    """Describe a data set, with the mean and std of the training images for a config file."""
    sizes = ", ".join(f"{prepared.num_examples(split):,} {split}" for split in prepared.splits)
    lines = [f"{prepared.name} {prepared.folder.name} in {prepared.folder}: {sizes}"]
    if prepared.size is not None and "train" in prepared.splits:
        images = load_split(prepared, "train", cache=None, workers=4).arrays["image"]
        mean, std = statistics(images)
        lines.append(f"input_shape: {list(images.shape[1:])}")
        lines.append(f"num_classes: {prepared.num_classes}")
        lines.append(f"mean: {[round(value, 4) for value in mean]}")
        lines.append(f"std: {[round(value, 4) for value in std]}")
    return "\n".join(lines)


def statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images [N, H, W, C], as 0..1."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(values, weights=counts)
        means.append(float(mean))
        stds.append(float(np.sqrt(np.average((values - mean) ** 2, weights=counts))))
    return means, stds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Download and prepare a TFDS data set.")
    parser.add_argument("name", help="as in TFDS, for example mnist")
    parser.add_argument("--dir", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    options = parser.parse_args(arguments)
    ensure_home()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(describe(prepare(options.name, data_dir(options.dir))))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
