"""Downloads and prepares a data set: `python -m experiments.data.prepare mnist [--dir FOLDER]`.

The same as `make data DATA=mnist`. Only this needs a network and TensorFlow (the extra `prepare`);
the digits need neither.
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

from experiments.data import prepared as on_disk
from experiments.data.decode import load_split
from experiments.data.prepared import FORMAT, Prepared
from experiments.errors import UserError

NETWORK_SECONDS = 5.0


def prepare(name: str, directory: Path) -> Prepared:
    """The data set `name` in `directory`, prepared there unless it already is.

    Raises:
        UserError: it is unknown, TensorFlow or the network is missing, downloading or preparing
            failed, or the folder cannot be written.
    """
    if found := on_disk.find(name, None, directory):
        return found
    try:
        if name == "digits":
            from experiments.data import digits

            digits.prepare(directory)
        else:
            on_disk.check_name(name, directory)
            _download(name, directory)
    except OSError as error:
        raise UserError(f"data set {name!r} cannot be written to {directory}: {error}") from error
    found = on_disk.find(name, None, directory)
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
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # of an unknown configuration
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
    """Asks for `url` once, as TFDS itself goes on asking for minutes.

    Any answer will do. The thread is there because no timeout covers the look-up of a host's name.
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
    """Lines on what there is, with the mean and std of the training images for a config file."""
    sizes = ", ".join(f"{prepared.num_examples(split):,} {split}" for split in prepared.splits)
    lines = [f"{prepared.name} {prepared.info['version']} in {prepared.folder}: {sizes}"]
    if None not in prepared.image_shape and "train" in prepared.splits:
        images = load_split(prepared, "train", cache=None).arrays["image"]
        mean, std = statistics(images)
        lines.append(f"input_shape: {list(images.shape[1:])}")
        lines.append(f"num_classes: {prepared.num_classes}")
        lines.append(f"mean: {[round(value, 4) for value in mean]}")
        lines.append(f"std: {[round(value, 4) for value in std]}")
    return "\n".join(lines)


def statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel of uint8 images [N, H, W, C], for pixels in 0..1."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(values, weights=counts)
        means.append(float(mean))
        stds.append(float(np.sqrt(np.average((values - mean) ** 2, weights=counts))))
    return means, stds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Download and prepare a TFDS image data set.")
    parser.add_argument("name", help="as in TFDS, for example mnist")
    parser.add_argument("--dir", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(describe(prepare(options.name, on_disk.data_dir(options.dir))))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
