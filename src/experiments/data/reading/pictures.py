"""Pictures in files of any kind, decoded to 8 bits and one shape; without JAX, for processes."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from experiments.data.reading.cache import cached, in_parallel, said, worth_processes
from experiments.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CHUNK = 128  # pictures that are decoded together
MODES = {1: "L", 3: "RGB"}  # Pillow's image mode by number of channels
SIDE = 256  # that large JPEG files are decoded to, at least, where they are only looked at
ORIENTATION = 0x0112  # the EXIF tag
QUARTER_TURNS = (5, 6, 7, 8)  # its values by which height and width are exchanged

LARGEST = 224  # side of pictures that are resized, unless it is said
KEPT = 256  # longer side of the largest pictures of one size that keep it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """An encoded picture in a row of a data set of Hugging Face."""

    data: Any
    column: str
    row: int
    split: str

    def open(self) -> IO[bytes]:
        """Return the file, in memory or on disk."""
        cell = self.data[self.row][self.column]
        if cell is None:
            raise ValueError("there is no picture")
        return io.BytesIO(cell["bytes"]) if cell["bytes"] else Path(cell["path"]).open("rb")

    def __str__(self) -> str:
        return f"{self.split}, row {self.row}"


Source = str | Cell  # of a picture: its path, or where it is in a data set
Look = tuple[tuple[int, int], bool, np.ndarray, str]


@dataclass(frozen=True)
class Scan:
    """What a look at every picture of a folder has found; arrays of one row per file.

    Args:
        sizes: (height, width), int32 [N, 2]; 0 where a file cannot be read.
        coloured: whether it has colours, bool [N].
        sums: of each channel red, green and blue, for pixels in 0..1, the mean and the mean square,
            float64 [N, 2, 3].
    """

    sizes: np.ndarray
    coloured: np.ndarray
    sums: np.ndarray

    @property
    def readable(self) -> np.ndarray:
        return self.sizes[:, 0] > 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of all pictures, or a square where they are large or differ in size.

        Its side is the median of their shorter sides, at most `LARGEST`.
        """
        sizes = self.sizes[self.readable]
        channels = 3 if self.coloured[self.readable].any() else 1
        if (sizes == sizes[0]).all() and sizes.max() <= KEPT:
            return int(sizes[0, 0]), int(sizes[0, 1]), channels
        side = min(int(np.median(sizes.min(axis=1))), LARGEST)
        return side, side, channels

    def statistics(self, rows: np.ndarray, channels: int) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel over pictures, which count alike."""
        mean, square = self.sums[rows].mean(axis=0)
        deviation = np.sqrt(np.maximum(square - mean**2, 1e-6))
        return _rounded(mean[:channels]), _rounded(deviation[:channels])


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def scan(paths: Sequence[Source], size: int, name: str, store: Path, workers: int) -> Scan:
    """Look at pictures, once: the next time what was found is read from the folder `store`.

    Args:
        size: of the files, in bytes.
        name: of the data, in messages.
        workers: processes that share the work where it is worth starting them.

    Raises:
        UserError: none of them can be read.
    """
    found = Scan(**cached(store, lambda: _look_at_all(paths, size, name, workers)))
    if not found.readable.any():
        raise UserError(f"{name}: none of its {len(paths)} pictures can be read")
    return found


def _look_at_all(
    paths: Sequence[Source], size: int, name: str, workers: int
) -> dict[str, np.ndarray]:
    bounds = chunks(len(paths))
    log.info("Looking at %d pictures in %s", len(paths), name)
    if not worth_processes(len(paths), size):
        workers = 0
    tasks = [paths[start:stop] for start, stop in bounds]
    parts = said(in_parallel(look, tasks, workers, name), bounds)
    seen = [one for part in parts for one in part]
    for path, (*_, error) in zip(paths, seen, strict=True):
        if error:
            log.warning("%s cannot be read: %s", path, error)
    return {
        "sizes": np.array([size for size, *_ in seen], np.int32),
        "coloured": np.array([coloured for _, coloured, *_ in seen]),
        "sums": np.array([sums for _, _, sums, _ in seen]),
    }


def look(paths: Sequence[Source]) -> list[Look]:
    """Return of each picture (height, width), whether it has colours, its sums, and an error.

    The sums, [2, 3], are the mean of each channel, for pixels in 0..1, and the mean square; the
    error is empty where it can be read, and the size 0 where it cannot.
    """
    found: list[Look] = []
    for path in paths:
        try:
            image, size = decoded(path, SIDE)
            pixels = np.asarray(image, np.float64).reshape(-1, len(image.getbands())) / 255
            sums = np.stack([pixels.mean(axis=0), (pixels**2).mean(axis=0)])
            found.append((size, image.mode == "RGB", np.broadcast_to(sums, (2, 3)), ""))
        except Exception as error:  # of Pillow, which raises many kinds for a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            found.append(((0, 0), False, np.zeros((2, 3)), reason))
    return found


def decoded(source: Source, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a picture to 8 bits, grey or in colour, on white where it is transparent.

    Args:
        side: a large JPEG file is decoded to a smaller picture, with both sides larger than this.

    Returns:
        The picture in the mode "L" or "RGB", and its (height, width) in full.

    Raises:
        Exception: it cannot be read, or has 32 bits per pixel and channel.
    """
    with Image.open(source if isinstance(source, str) else source.open()) as image:
        turned = image.getexif().get(ORIENTATION) in QUARTER_TURNS
        width, height = image.size[::-1] if turned else image.size
        image.draft(None, (side, side))
        image.load()
        upright = ImageOps.exif_transpose(image)
    return _eight_bits(upright), (height, width)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per pixel: save it with 8 or 16")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "P":
        palette = np.reshape(np.array(image.getpalette("RGB")), (-1, 3))
        grey = bool((palette == palette[:, :1]).all())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> Image.Image:
    """Resize a picture to (height, width, channels); what is too long is cut off on both sides."""
    height, width, channels = shape
    image = image.convert(MODES[channels])
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class FolderRecords:
    """Random access to pictures in one shape and their labels."""

    paths: list[Source]
    labels: np.ndarray
    shape: tuple[int, int, int]
    size: int  # of the files, in bytes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            image, _ = decoded(path, max(self.shape[:2]))
        except Exception as error:  # it could be read when all were looked at
            raise UserError(f"{path} cannot be read ({error}): has it changed?") from error
        return fitted(image, self.shape), int(self.labels[index])

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """(start, stop) of ranges of at most `CHUNK` pictures."""
        return chunks(len(self))

    def chunk(self, bounds: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return images, uint8 [n, H, W, C], and labels, int32 [n]."""
        pictures = [self[i] for i in range(*bounds)]
        images = np.stack([np.asarray(image).reshape(self.shape) for image, _ in pictures])
        return images, np.array([label for _, label in pictures], np.int32)


def chunks(total: int) -> list[tuple[int, int]]:
    """Return (start, stop) of ranges of at most `CHUNK`."""
    return [(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
