"""Labelled images: what all sources share, and those of TensorFlow Datasets, also row by row."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from experiments.data.dataset import Pictures, Spec, Splits, hold_out, number_held_out
from experiments.data.pipeline import Augment, Pipeline, RowPipeline
from experiments.data.reading.cache import load_split
from experiments.data.reading.prepared import Prepared, find_here, locate
from experiments.data.sampling import count_of, known_count, limited
from experiments.errors import UserError
from experiments.types import (
    BatchSize,
    Decay,
    Fraction,
    Limit,
    NonNegativeInt,
    PositiveInt,
    Sampler,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class Images:
    """The arguments and methods that all sources of labelled images share.

    Args:
        limit: use only so many training examples; or with a float this share of every
            class (of a stream from TFDS, of all); None uses all.
        sampler: "balanced" draws training examples so that all classes come equally often.
        batch_size: training examples per step; -1 is all of them.
        eval_batch_size: examples per step of evaluation; -1 is all of them.
        mean, std: per channel, for pixels in 0..1.
        augment: changes to training images on the device.
        image_size: side to which pictures are resized; None leaves that to the data.
        crop_size: side of the part of each image that the model sees: a random crop in training,
            the centre in evaluation (AlexNet: 224 of an `image_size` of 256); None is all of it.
        resize: enlarge images that are too small for a model to its least size, on the device.
        stream: True streams, False reads everything into memory; None streams data larger than
            `resident_limit_mb`.
        resident_limit_mb: decoded size in MiB of the largest data read into memory.
        workers: processes that decode pictures; 0 decodes in this process.
        cache_dir: folder of decoded data; None means the user's cache folder.
        split_seed: decides which examples are held out, and which ones `limit` selects.
    """

    limit: Limit = None
    sampler: Sampler = "uniform"
    batch_size: BatchSize = 128
    eval_batch_size: PositiveInt | Literal[-1] = 256
    mean: list[Fraction] | None = None
    std: list[Share] | None = None
    augment: Augment = field(default_factory=Augment)
    image_size: PositiveInt | None = None
    crop_size: PositiveInt | None = None
    resize: bool = True
    stream: bool | None = None
    resident_limit_mb: NonNegativeInt = 2048
    workers: NonNegativeInt = 4
    cache_dir: str | None = None
    split_seed: NonNegativeInt = 0

    @property
    def spec(self) -> Spec:
        """Shapes and classes; looks at the data only where the config does not say them."""
        stored = {"image": (self._shape, "uint8"), "label": ((), "int32")}
        whole = Spec(self._shape, self._classes, self._train_examples, stored)
        side = self.crop_size
        if side is None:
            return whole
        height, width, channels = self._shape
        if side > min(height, width):
            raise UserError(f"data.crop_size={side} is more than the images have: {height}x{width}")
        return replace(whole, input_shape=(side, side, channels))

    @property
    def pipeline(self) -> Pipeline:
        """The part of the training step that prepares each batch."""
        channels = self._shape[2]
        self._check_channels(channels)
        mean, std = self._statistics
        classes = self.spec.num_classes
        return Pipeline(tuple(mean), tuple(std), classes, self.augment, self.crop_size)

    @property
    def _shape(self) -> tuple[int, ...]:
        """(height, width, channels) before `crop_size` is applied."""
        raise NotImplementedError

    @property
    def _classes(self) -> int:
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, where they are known without the examples."""
        return ()

    @property
    def _train_examples(self) -> int | None:
        """The number of examples to train on; None where only reading the data can tell."""
        return known_count(self.limit)

    @property
    def _statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, for pixels in 0..1."""
        half = [0.5] * self._shape[2]
        return self.mean or half, self.std or half

    def _opened(
        self, data: Pictures, parts: Mapping[str, tuple], image_size: int | None = None
    ) -> dict[str, Any]:
        """Return the splits, as `Arrays` if they fit into memory, else as `Stream`s.

        `parts` has for each of them the split in the data, and the indices of its examples, int
        [N], or None for all. Pictures are cropped to `image_size` while they stream.
        """
        names = dict.fromkeys(split for split, _ in parts.values())
        if self._streamed(data, names, image_size):
            from experiments.data.reading.stream import (
                open_split,  # imports Grain, which takes seconds
            )

            read = partial(open_split, data, image_size=image_size, workers=self.workers)
            whole = self.crop_size is not None
            return {part: read(*chosen, whole=whole) for part, chosen in parts.items()}
        resident = {split: load_split(data, split, self.cache_dir, self.workers) for split in names}
        return {
            part: resident[split] if indices is None else resident[split].take(indices)
            for part, (split, indices) in parts.items()
        }

    def _streamed(self, data: Pictures, splits: Iterable[str], image_size: int | None) -> bool:
        """Return whether these splits are read batch by batch."""
        if self.stream is not None or image_size is not None:
            return bool(self.stream or image_size)
        size = math.prod(data.picture_shape) * sum(map(data.num_examples, splits))
        return size > self.resident_limit_mb * 2**20

    def _check_channels(self, channels: int) -> None:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != channels:
                raise UserError(
                    f"data.{key} has {len(values)} values, but the images have {channels} "
                    f"channel{'s'[: channels > 1]}: give one value per channel"
                )

    def _limited(
        self, order: np.ndarray, where: str, labels: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the indices of the training examples that `limit` leaves, sorted.

        They are read in the order of the file; training shuffles them anyway. The labels are those
        of all examples, where they are known.
        """
        return np.sort(limited(order, self._within(len(order), where), labels))

    def _within(self, count: int, where: str) -> Limit:
        """Return the limit, where there are so many training examples."""
        if isinstance(self.limit, int) and self.limit > count:
            raise UserError(
                f"data.limit is {self.limit}, but {where} has {count} training examples"
            )
        return self.limit


@dataclass(frozen=True, kw_only=True)
class TfdsImages(Images):
    """A labelled image data set that TFDS has prepared on disk.

    Constructing it reads nothing. `load` reads it without TensorFlow: small data are decoded once
    into a cache, large data are streamed.

    Train, validation and test are always disjoint. Where `validation_split` is None, the share
    `validation_fraction` of the training split is held out: the first examples of a permutation by
    `numpy.random.Generator(PCG64(split_seed))`.

    Args:
        name: of the data set in TFDS, with its configuration if it has some ("cifar10",
            "imagenet_resized/32x32").
        version: None takes the newest prepared.
        dir: folder of prepared data; None means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        input_shape: (height, width, channels) of the model's input; None reads it from the data.
        num_classes: None reads it from the data.
        train_split, validation_split, test_split: their names in the prepared data.
        validation_fraction: share of the training split held out, in (0, 1).
        image_size: side to which pictures are cropped and resized while streaming; None takes them
            as they are.
        split_seed, mean, std and the others: see `Images`; a mean or std of None is 0.5, which maps
            pixels to -1..1. Pictures that need resizing are always streamed.

    Raises:
        UserError: arguments that do not agree with each other.
    """

    name: str
    version: str | None = None
    dir: str | None = None
    input_shape: list[PositiveInt] | None = None
    num_classes: PositiveInt | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str = "test"
    validation_fraction: Decay = 0.1

    def __post_init__(self) -> None:
        def check(key: str, valid: bool, wanted: str) -> None:
            if not valid:
                value = getattr(self, key)
                raise UserError(f"data.{key} is {value}: it must be {wanted}")

        size, shape = self.image_size, self.input_shape
        check("stream", not (size and self.stream is False), "true or null with data.image_size")
        check("test_split", self.test_split != self.train_split, "apart from the training data")
        check(
            "validation_split",
            self.validation_split not in (self.train_split, self.test_split),
            "apart from the training and test data, or null to hold out training data",
        )
        if shape is None:
            return
        check("input_shape", len(shape) == 3, "[height, width, channels]")
        if size:
            wanted = [size, size, shape[2]]
            check("input_shape", list(shape) == wanted, f"{wanted}, to agree with data.image_size")
        self._check_channels(shape[2])

    @property
    def _train_examples(self) -> int | None:
        if self._here is None:  # data that the config describes need not be on this machine
            return known_count(self.limit)
        count = self._here.num_examples(self.train_split)
        if self.validation_split is None:
            count -= number_held_out(count, self.validation_fraction)
        limit = self._within(count, repr(self.name))
        return count if isinstance(limit, float) else count_of(limit, count)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that TFDS wrote beside the data, if these are on this machine."""
        return self._here.class_names if self._here else ()

    @property
    def _classes(self) -> int:
        return self.num_classes or self._prepared.num_classes

    def load(self) -> Splits:
        """Find and read the data.

        Raises:
            UserError: the data set is unknown, not prepared, damaged, without one of the splits, or
                not as the configuration says.
        """
        prepared = self._prepared
        prepared.check("input_shape", self.input_shape, list(self._shape_of_data))
        prepared.check("num_classes", self.num_classes, prepared.num_classes)
        self._check_channels(prepared.channels)
        train, held_out = self._train_indices(prepared)
        validation = self.validation_split or self.train_split
        names = dict.fromkeys((self.train_split, validation, self.test_split))
        labels = None
        if isinstance(self.limit, float) and not self._streamed(prepared, names, self.image_size):
            decoded = load_split(prepared, self.train_split, self.cache_dir, self.workers)
            labels = decoded.arrays["label"]
        train = self._limited(train, repr(self.name), labels)
        parts = {
            "train": (self.train_split, train),
            "validation": (validation, held_out),
            "test": (self.test_split, None),
        }
        splits = self._opened(prepared, parts, self.image_size)
        return Splits(
            **splits,
            class_names=prepared.class_names,
            fingerprint=prepared.fingerprint,
            test_note=prepared.test_note,
        )

    @cached_property
    def _prepared(self) -> Prepared:
        return self._here or locate(self.name, self.version, self.dir)

    @cached_property
    def _here(self) -> Prepared | None:
        return find_here(self.name, self.version, self.dir)

    @property
    def _shape_of_data(self) -> tuple[int, int, int]:
        if self.image_size:
            return self.image_size, self.image_size, self._prepared.channels
        return self._prepared.picture_shape

    @property
    def _shape(self) -> tuple[int, ...]:
        """(height, width, channels) before `crop_size` is applied."""
        return self._shape_of_data if self.input_shape is None else tuple(self.input_shape)

    def _train_indices(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray | None]:
        """Return indices of the training split: to train on, shuffled, and held out, None for none.

        Those held out are sorted, so that they are read in the order of the file.
        """
        total = prepared.num_examples(self.train_split)
        fraction = self.validation_fraction if self.validation_split is None else None
        train, held_out = hold_out(total, fraction, self.split_seed)
        chosen = None if fraction is None else np.sort(held_out)
        return train, chosen


@dataclass(frozen=True, kw_only=True)
class TfdsRows(TfdsImages):
    """Labelled images from TFDS as sequences: a row of pixels per step; see `TfdsImages`."""

    @property
    def spec(self) -> Spec:
        image = super().spec
        height, width, channels = image.input_shape
        return replace(image, input_shape=(height, width * channels))

    @property
    def pipeline(self) -> RowPipeline:
        """The part of the training step that prepares each batch."""
        return RowPipeline(**vars(super().pipeline))
