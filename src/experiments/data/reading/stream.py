"""Large data by Grain: read, decoded and resized by worker processes while the model trains."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from experiments.data.dataset import Batch, Pictures, Stream
from experiments.data.reading.cache import begin_decoding

Example = dict[str, Any]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

EVAL_RESIZE = 256 / 224  # shorter side before the centre crop, over the side of the crop
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


def open_split(
    pictures: Pictures,
    split: str,
    indices: np.ndarray | None = None,
    *,
    image_size: int | None,
    whole: bool,
    workers: int,
) -> Stream:
    """Open a split, or the part of it at `indices` (int [N]), as a stream; see `Stream`.

    Args:
        image_size: training pictures are randomly cropped, mirrored and resized to this side
            (arXiv:1409.4842, section 6), evaluation pictures resized and cropped around the centre.
            None: all pictures have one shape already and stay as they are.
        whole: in training too, resize the whole middle square of a picture, to be cropped later.
        workers: decoding processes. The batches do not depend on their number.

    Raises:
        UserError: there is no such split, or files are missing.
    """
    records = pictures.records(split)
    indices = np.arange(len(records)) if indices is None else indices

    def iterate(batch_size: int, seed: int, train: bool, rows: range | None = None) -> _Batches:
        if batch_size == -1:
            batch_size = len(indices)
        data = grain.MapDataset.source(indices).map(records.__getitem__).seed(seed)
        if train:
            data = data.shuffle()
            if whole:
                data = data.map(partial(_centred, size=image_size, resized=1.0))
            else:
                data = data.random_map(partial(_randomly_cropped, size=image_size))
            if rows is not None:
                data = _Rows(data, batch_size, rows)
                batch_size = len(rows)
            data = data.batch(batch_size, drop_remainder=True)
        else:
            resized = 1.0 if whole else EVAL_RESIZE
            data = data.map(partial(_centred, size=image_size, resized=resized))
            data = data.batch(batch_size, batch_fn=partial(_pad, size=batch_size))
        # Evaluation reads on into the next pass too, because starting the workers takes seconds.
        return _Batches(data.repeat(), workers, None if train else len(data))

    return Stream(len(indices), iterate)


class _Rows(grain.MapDataset):
    """The examples of `parent` at certain rows of every full batch, one after another."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: range) -> None:
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows
        self._batches = len(parent) // batch_size

    def __len__(self) -> int:
        return self._batches * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        epoch, index = divmod(index, len(self))  # numbers beyond the length are later epochs
        batch, row = divmod(index, len(self._rows))
        position = batch * self._batch_size + self._rows[row]
        return self._parent[epoch * len(self._parent) + position]


class _Batches:
    """An iterator over batches with its position as its only state.

    A batch follows from the seed and its number, so a position can be resumed with another number
    of workers than it was saved with, unlike the state of Grain's own iterator.

    Every `pass_length` batches (None: never) it stops; iterating again continues with the next
    pass.
    """

    def __init__(self, data: grain.MapDataset, workers: int, pass_length: int | None) -> None:
        self._data = data
        self._workers = workers
        self._pass_length, self._stopped = pass_length, False
        self.close: Callable[[], Any] = lambda: None  # ends the worker processes
        self.go_to(0)

    def go_to(self, position: int) -> None:
        """Make the batch of this number the next one."""
        self.close()
        # An element is a whole batch here, so the buffers hold few. Grain's defaults hold 500.
        threads = 1 if self._workers else 4
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = self._data[position:].to_iter_dataset(reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads its flags, none of which is set here
            options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(options, begin_decoding)
        self._position = position
        self._iterator = iter(batches)
        # Called when the program ends, too: otherwise Grain's own clean-up ends in a traceback.
        self.close = weakref.finalize(self, self._iterator.close)

    def __iter__(self) -> "_Batches":
        return self

    def __next__(self) -> Batch:
        at_end = self._pass_length and self._position and self._position % self._pass_length == 0
        if at_end and not self._stopped:
            self._stopped = True
            raise StopIteration
        self._stopped = False
        # Copied, because memory that is shared with the workers must not outlive them.
        batch = {name: np.array(array) for name, array in next(self._iterator).items()}
        self._position += 1
        return batch


def _randomly_cropped(
    source: tuple[Image.Image, int], rng: np.random.Generator, *, size: int | None
) -> Example:
    image, label = source
    if size is not None:
        image = _crop(image, random_box(image.width, image.height, rng), size)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _example(image, label)


def _centred(source: tuple[Image.Image, int], *, size: int | None, resized: float) -> Example:
    image, label = source
    if size is not None:
        image = _crop(image, centre_box(image.width, image.height, resized), size)
    return _example(image, label)


def _crop(image: Image.Image, box: Box, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def _example(image: Image.Image, label: int) -> Example:
    pixels = np.asarray(image)
    return {"image": pixels.reshape(*pixels.shape[:2], -1), "label": np.int32(label)}


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw a random part of a picture.

    Its share of the area is uniform in `CROP_AREA`, its ratio of width to height log-uniform in
    `CROP_RATIO`. Where ten draws do not fit, it is the whole picture, cut to that range of ratios.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    w, h = min(width, height * CROP_RATIO[1]), min(height, width / CROP_RATIO[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def centre_box(width: int, height: int, resized: float = EVAL_RESIZE) -> Box:
    """Return the square in the centre; its side is the picture's shorter one over `resized`.

    By default this is the part that remains of a picture resized to 256 and cropped to 224.
    """
    side = min(width, height) / resized
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _pad(examples: Sequence[Example], size: int) -> Batch:
    """Batch up to `size` examples; zeros stand for missing ones, and "mask" leaves them out."""
    missing = size - len(examples)

    def stack(key: str) -> np.ndarray:
        values = np.stack([example[key] for example in examples])
        return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))

    mask = np.pad(np.ones(len(examples), np.float32), (0, missing))
    return {"image": stack("image"), "label": stack("label"), "mask": mask}
