"""The examples in the files of a prepared data set, read and decoded without TFDS or TensorFlow.

TFDS stores each example as a serialized `tf.train.Example`.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

from experiments.data.reading.prepared import Kind, Prepared
from experiments.errors import UserError

CHUNK = 512  # examples that are read and decoded together
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's image mode by number of channels


def _example_type() -> Any:
    """Return the protobuf class of `tf.train.Example`, without the fields that are not read here.

    It is declared here because importing TFDS for its declaration takes long, and every process
    that decodes would do so. A protobuf map is on the wire a repeated (key, value) message, and
    declared as one, so that no copy of the dictionary is built.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    messages = {
        "Bytes": [("value", 1, kinds.TYPE_BYTES, True)],
        "Ints": [("value", 1, kinds.TYPE_INT64, True)],
        "Feature": [("bytes_list", 1, "Bytes", False), ("int64_list", 3, "Ints", False)],
        "Entry": [("key", 1, kinds.TYPE_STRING, False), ("value", 2, "Feature", False)],
        "Features": [("feature", 1, "Entry", True)],
        "Example": [("features", 1, "Features", False)],
    }
    package = "experiments.records"
    file = descriptor_pb2.FileDescriptorProto(
        name="experiments/records.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            declared = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                declared.type, declared.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                declared.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Example"))


Example = _example_type()


class Records:
    """Random access to the examples of a prepared split.

    Items are pairs of a picture, decoded, and its label: what Grain calls a source. `chunk` reads
    many of them at once, and so does `texts` for a data set of text.

    Raises:
        UserError: there is no such split, a file is missing, or, on access, it is damaged.
    """

    def __init__(self, prepared: Prepared, split: str) -> None:
        self._prepared, self._split = prepared, split
        self._files = prepared.shards(split)
        lengths = prepared.shard_lengths(split)
        self._ends = list(itertools.accumulate(lengths))
        # With the number of records in the name, no file has to be opened to count them.
        names = [f"{path}[0:{n}]" for path, n in zip(self._files, lengths, strict=True)]
        self._records = ArrayRecordDataSource(names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with self._readable(index):
            return self._picture(self._records[index])

    @property
    def size(self) -> int:
        """The size of the files in bytes."""
        return sum(path.stat().st_size for path in self._files)

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """(start, stop) of ranges of at most `CHUNK` examples, each in one file."""
        bounds = {0, *self._ends, *range(0, len(self), CHUNK)}
        return list(itertools.pairwise(sorted(bounds)))

    def chunk(self, bounds: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Read pictures that all have one shape.

        Args:
            bounds: one of `chunks`.

        Returns:
            Images, uint8 [n, H, W, C], and labels, int32 [n].
        """
        indices = range(*bounds)
        height, width, channels = self._prepared.picture_shape
        images = np.empty((len(indices), height, width, channels), np.uint8)
        labels = np.empty(len(indices), np.int32)
        with self._readable(bounds[0]):
            for i, record in enumerate(self._records.__getitems__(indices)):
                image, labels[i] = self._picture(record)
                if image.size != (width, height):
                    size = f"{image.height}x{image.width}"
                    raise ValueError(f"picture of {size} pixels, not {height}x{width}")
                images[i] = np.asarray(image).reshape(images.shape[1:])
        return images, labels

    def texts(self) -> list[tuple[str, int]]:
        """Read all texts with their labels, -1 where there is none."""
        found = []
        for bounds in self.chunks:
            with self._readable(bounds[0]):
                for record in self._records.__getitems__(range(*bounds)):
                    text, label = self._parsed(record, "text")
                    found.append((text.decode(), label))
        return found

    def _picture(self, record: bytes) -> tuple[Image.Image, int]:
        encoded, label = self._parsed(record, "image")
        mode = MODES[self._prepared.channels]
        image = Image.open(io.BytesIO(encoded))
        if image.mode.startswith(("I", "F")):  # Pillow would cut values off at 255
            raise ValueError("a picture has more than 8 bits per channel")
        image.load()  # decodes it
        return (image if image.mode == mode else image.convert(mode)), label

    def _parsed(self, record: bytes, kind: Kind) -> tuple[bytes, int]:
        """Return the picture or text in one serialized example, and its label, -1 without one.

        Some records of a truncated file read as empty; they count as damaged.
        """
        try:
            features = {e.key: e.value for e in Example.FromString(record).features.feature}
            labelled = kind == "image" or "label" in features
            label = features["label"].int64_list.value[0] if labelled else -1
            content = features[kind].bytes_list.value[0]
        except Exception as error:
            raise ValueError("a record is damaged") from error
        classes = self._prepared.num_classes
        if labelled and classes and not 0 <= label < classes:
            raise UserError(
                f"an example of {self._prepared.name}, split {self._split!r}, "
                f"has the label {label}, none of {classes} classes; "
                f"TFDS marks by -1 what has no label: use another split"
            )
        return content, label

    @contextlib.contextmanager
    def _readable(self, index: int) -> Iterator[None]:
        """Name the file with example `index` in an error."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            path = self._files[np.searchsorted(self._ends, index, side="right")]
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"prepared data cannot be read: {path}: {reason}"
            raise UserError(f"{message}\n{self._prepared.remedy}") from error
