"""Labelled images from TensorFlow Datasets: the target of every file in `conf/data/`."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from experiments.data import prepared as on_disk
from experiments.data.augment import Augment, Pipeline
from experiments.data.dataset import Spec, Splits
from experiments.data.decode import load_split
from experiments.data.prepared import Prepared
from experiments.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TfdsImages:
    """A labelled image data set that TFDS has prepared on disk.

    Constructing it reads nothing. `load` reads it without TensorFlow: small data are decoded once
    and kept in a cache, large data are streamed.

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
        split_seed: decides which examples are held out, and which ones `limit` keeps.
        limit: use only so many training examples; None uses all.
        batch_size: training examples a step; -1 is all of them.
        eval_batch_size: examples a step of evaluation; -1 is all of them.
        mean, std: per channel, for pixels in 0..1; None means 0.5, which maps pixels to -1..1.
        augment: changes to training images on the device.
        image_size: side to which pictures are cropped and resized while streaming; None takes them
            as they are.
        crop_size: side of what the model sees of each image: a random crop in training, the
            centre in evaluation (AlexNet: 224 of an `image_size` of 256); None is all of it.
        resize: bring images that are too small for a model up to its least size, on the device.
        stream: whether to stream; None streams pictures that need resizing and data larger than
            `resident_limit_mb`.
        resident_limit_mb: decoded size in MiB of the largest data kept in memory.
        workers: processes that decode a stream; 0 decodes in this process.
        cache_dir: folder of decoded data; None means the user's cache folder.

    Raises:
        UserError: a value out of its range.
    """

    name: str
    version: str | None = None
    dir: str | None = None
    input_shape: list[int] | None = None
    num_classes: int | None = None
    train_split: str = "train"
    validation_split: str | None = None
    test_split: str = "test"
    validation_fraction: float = 0.1
    split_seed: int = 0
    limit: int | None = None
    batch_size: int = 128
    eval_batch_size: int = 256
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: Augment = field(default_factory=Augment)
    image_size: int | None = None
    crop_size: int | None = None
    resize: bool = True
    stream: bool | None = None
    resident_limit_mb: int = 2048
    workers: int = 4
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        def check(key: str, valid: bool, wanted: str) -> None:
            if not valid:
                value = getattr(self, key)
                raise UserError(f"data.{key} is {value}: it must be {wanted}")

        size, shape = self.image_size, self.input_shape
        check("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")
        check("split_seed", self.split_seed >= 0, "0 or more")
        check("limit", self.limit is None or self.limit >= 1, "1 or more, or null for all")
        for key in ("batch_size", "eval_batch_size"):
            value = getattr(self, key)
            check(key, value == -1 or value >= 1, "1 or more, or -1 for all examples")
        check("image_size", size is None or size >= 1, "1 or more, or null")
        check("crop_size", self.crop_size is None or self.crop_size >= 1, "1 or more, or null")
        check("workers", self.workers >= 0, "0 or more")
        check("stream", not (size and self.stream is False), "true or null with data.image_size")
        check("test_split", self.test_split != self.train_split, "apart from the training data")
        check(
            "validation_split",
            self.validation_split not in (self.train_split, self.test_split),
            "apart from the training and test data, or null to hold out training data",
        )
        check("std", self.std is None or min(self.std, default=0) > 0, "above 0 in each channel")
        if shape is None:
            return
        check("input_shape", len(shape) == 3 and min(shape) >= 1, "[height, width, channels]")
        if size:
            wanted = [size, size, shape[2]]
            check("input_shape", list(shape) == wanted, f"{wanted}, to agree with data.image_size")
        self._check_channels(shape[2])

    @property
    def spec(self) -> Spec:
        """Shape and classes; reads the description of the data only where those are None."""
        whole, side = self._image_spec(), self.crop_size
        if side is None:
            return whole
        height, width, channels = whole.input_shape
        if side > min(height, width):
            raise UserError(f"data.crop_size={side} is more than the images have: {height}x{width}")
        return replace(whole, input_shape=(side, side, channels), stored=whole.example)

    def _image_spec(self) -> Spec:
        if self.input_shape is not None and self.num_classes is not None:
            return Spec(tuple(self.input_shape), self.num_classes, self.limit)
        prepared = self._prepared()
        return Spec(self._input_shape(prepared), prepared.num_classes, self.limit)

    @property
    def pipeline(self) -> Pipeline:
        """What the training step applies to each batch."""
        spec = self._image_spec()
        channels = spec.input_shape[-1]
        self._check_channels(channels)
        mean, std = self.mean or [0.5] * channels, self.std or [0.5] * channels
        return Pipeline(tuple(mean), tuple(std), spec.num_classes, self.augment, self.crop_size)

    def load(self) -> Splits:
        """Finds and reads the data.

        Raises:
            UserError: the data set is unknown, not prepared, damaged, without one of the splits, or
                not what the configuration says.
        """
        prepared = self._prepared()
        self._check_matches(prepared)
        train, held_out = self._train_indices(prepared)
        parts: dict[str, tuple[str, np.ndarray | None]] = {
            "train": (self.train_split, train),
            "validation": (self.validation_split or self.train_split, held_out),
            "test": (self.test_split, None),
        }
        if self._streams(prepared):
            from experiments.data.stream import open_split  # imports Grain, which takes seconds

            splits: dict[str, Any] = {
                part: open_split(
                    prepared,
                    split,
                    indices,
                    image_size=self.image_size,
                    whole=self.crop_size is not None,
                    workers=self.workers,
                )
                for part, (split, indices) in parts.items()
            }
        else:
            names = {split for split, _ in parts.values()}
            whole = {split: load_split(prepared, split, self.cache_dir) for split in names}
            splits = {
                part: whole[split] if indices is None else whole[split].take(indices)
                for part, (split, indices) in parts.items()
            }
        return Splits(**splits, class_names=prepared.class_names, fingerprint=prepared.fingerprint)

    def _prepared(self) -> Prepared:
        return on_disk.locate(self.name, self.version, self.dir, self.cache_dir)

    def _input_shape(self, prepared: Prepared) -> tuple[int, int, int]:
        height, width, channels = prepared.picture_shape
        if self.image_size:
            return self.image_size, self.image_size, channels
        if height is None or width is None:
            raise UserError(
                f"the pictures of data set {self.name!r} differ in size: "
                f"set data.image_size (and data.input_shape to match)"
            )
        return height, width, channels

    def _check_matches(self, prepared: Prepared) -> None:
        """That the configuration says of the data what is true of them."""
        actual = {
            "input_shape": list(self._input_shape(prepared)),
            "num_classes": prepared.num_classes,
        }
        for key, value in actual.items():
            configured = getattr(self, key)
            if configured is not None and configured != value:
                raise UserError(
                    f"data.{key} is {configured}, but the data prepared in {prepared.folder} have "
                    f"{value}: set data.{key}={str(value).replace(' ', '')}"
                )
        self._check_channels(prepared.picture_shape[2])

    def _check_channels(self, channels: int) -> None:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != channels:
                raise UserError(
                    f"data.{key} has {len(values)} values, but the images have {channels} "
                    f"channel{'s'[: channels > 1]}: give one value a channel"
                )

    def _train_indices(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray | None]:
        """Which examples of the training split train, and which are held out (None: not any).

        Sorted, so that they are read in the order of the file; training shuffles them anyway.
        """
        total = prepared.num_examples(self.train_split)
        order = np.arange(total, dtype=np.int32)  # for ten million examples a few bytes count
        np.random.Generator(np.random.PCG64(self.split_seed)).shuffle(order)
        held_out = None
        if self.validation_split is None:
            count = round(self.validation_fraction * total)
            if not 0 < count < total:
                raise UserError(
                    f"data.validation_fraction={self.validation_fraction} holds out {count} of "
                    f"{total} examples: choose one that leaves some for training and validation"
                )
            held_out, order = np.sort(order[:count]), order[count:]
        if self.limit is not None and self.limit > len(order):
            raise UserError(
                f"data.limit is {self.limit}, but {self.name!r} has {len(order)} training examples"
            )
        order = order[: self.limit]
        order.sort()
        return order, held_out

    def _streams(self, prepared: Prepared) -> bool:
        if self.stream is not None or self.image_size:
            return self.stream is not False
        splits = {self.train_split, self.validation_split or self.train_split, self.test_split}
        count = sum(prepared.num_examples(split) for split in splits)
        return count * int(np.prod(self._input_shape(prepared))) > self.resident_limit_mb * 2**20
