"""The 8x8 handwritten digits as a TFDS data set that needs neither network nor TensorFlow.

Imported only to prepare it: importing TFDS takes about a second.
"""

import contextlib
import csv
import gzip
import io
import logging
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data.cache import replace_folder, scratch_folder
from experiments.data.prepared import FORMAT

log = logging.getLogger(__name__)

TRAIN = 1437  # the first 80 % of the examples; the last 360 are for testing


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits of 8x8 pixels, written by hand.

    The test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998, UCI
    Machine Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0), by 13 writers,
    in the order of scikit-learn's copy. The pixels 0..16 are stretched to 0..255, which
    `round(pixel * 16 / 255)` inverts.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "digits"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        images, labels = read_raw()
        return {
            "train": self._generate_examples(images[:TRAIN], labels[:TRAIN]),
            "test": self._generate_examples(images[TRAIN:], labels[TRAIN:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="PNG")
            png.seek(0)  # TFDS stores a file as it is, and needs TensorFlow to encode an array
            yield index, {"image": png, "label": int(label)}


def read_raw() -> tuple[np.ndarray, np.ndarray]:
    """The digits as shipped: images uint8 [1797, 8, 8] in 0..255, labels int64 [1797]."""
    packed = resources.files("experiments.data").joinpath("digits.csv.gz").read_bytes()
    rows = csv.reader(gzip.decompress(packed).decode().splitlines())
    table = np.array([[int(value) for value in row] for row in rows])
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return pixels.reshape(-1, 8, 8), table[:, -1]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps back what TFDS prints and logs of the scratch folder it writes to."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def prepare(directory: Path) -> None:
    """Writes the prepared data set into `directory`, in the layout of TFDS.

    Any number of processes may do so at once.

    Raises:
        OSError: `directory` cannot be written.
    """
    tfds.disable_progress_bar()
    fresh = scratch_folder(directory / "digits")
    log.info("Preparing the digits in %s", directory / "digits")
    try:
        builder = Digits(data_dir=str(fresh), file_format=FORMAT)
        with _silence():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        replace_folder(fresh / "digits", directory / "digits")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
