"""Records of prepared TFDS image data, read and decoded without TFDS or TensorFlow.

TFDS stores each example as a serialized `tf.train.Example`. The message is declared here because
importing TFDS only for its declaration costs each decoding process about a second.

Run as a script, this file is one decoding process of `decode.py`; it therefore imports nothing else
of the package.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

CHUNK = 512  # examples read, decoded and handed on at a time
DAMAGED = 65  # exit code: EX_DATAERR of sysexits.h
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's image mode by number of channels


@cache
def _example_type() -> Any:
    """The protobuf class of `tf.train.Example`, fields that images do not need left out.

    A protobuf map is on the wire a repeated (key, value) message, and declared so here: no copy of
    the dictionary is built.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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


def parse(record: bytes) -> tuple[bytes, int]:
    """The encoded picture and the label of one serialized example.

    Raises:
        ValueError: the record is damaged. Of a truncated file some records read as empty.
    """
    try:
        features = {e.key: e.value for e in _example_type().FromString(record).features.feature}
        return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]
    except Exception as error:
        raise ValueError("a record is damaged") from error


def parse_text(record: bytes) -> tuple[str, int]:
    """The text of one serialized example and its label, -1 where it has none.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        features = {e.key: e.value for e in _example_type().FromString(record).features.feature}
        label = features["label"].int64_list.value[0] if "label" in features else -1
        return features["text"].bytes_list.value[0].decode(), label
    except Exception as error:
        raise ValueError("a record is damaged") from error


def read_texts(shards: Sequence[str]) -> list[tuple[str, int]]:
    """All texts of a split with their labels; see `parse_text`.

    Raises:
        ValueError: a record cannot be read.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    texts = []
    for shard in shards:
        try:
            reader = ArrayRecordReader(shard)
            texts += [parse_text(record) for record in reader.read_all()]
            reader.close()
        except Exception as error:
            raise ValueError(f"{shard}: {str(error).splitlines()[0]}") from error
    return texts


def open_image(encoded: bytes, channels: int) -> Image.Image:
    """The picture behind PNG or JPEG bytes, in the colour mode that has so many channels."""
    image = Image.open(io.BytesIO(encoded))
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def decode(
    shards: Sequence[str], start: int, stop: int, shape: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decodes the examples `start` to `stop` of a split, a chunk at a time.

    Args:
        shards: the array_record files of the split, in order.
        start, stop: range of examples, counted over all shards.
        shape: of every picture, (height, width, channels).

    Yields:
        images uint8 [n, H, W, C] and labels int32 [n], n at most `CHUNK`.

    Raises:
        ValueError: a record cannot be read, or a picture is not of that shape.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    first = 0  # index of the shard's first example
    for shard in shards:
        try:
            reader = ArrayRecordReader(shard)
            count = reader.num_records()
            for low in range(max(start - first, 0), min(stop - first, count), CHUNK):
                high = min(low + CHUNK, stop - first, count)
                yield _decode_chunk(reader.read(list(range(low, high))), shape)
            reader.close()
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{shard}: {message}") from error
        first += count
    if first < stop:
        raise ValueError(f"{shards[-1]}: {first} examples in this split, expected {stop} or more")


def _decode_chunk(
    records: Sequence[bytes], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for i, record in enumerate(records):
        encoded, labels[i] = parse(record)
        image = open_image(encoded, shape[2])
        if image.size != (shape[1], shape[0]):
            raise ValueError(f"picture of {image.size[1]}x{image.size[0]} pixels, not {shape[:2]}")
        images[i] = np.asarray(image).reshape(shape)
    return images, labels


def main(arguments: Sequence[str]) -> None:
    """`records.py START STOP HEIGHT WIDTH CHANNELS SHARD...` writes chunks to standard output.

    A chunk is the number of its examples (int32), their images and their labels, all raw. The exit
    code is `DAMAGED`, and the last line of standard error says what, where the data are damaged.
    """
    start, stop, height, width, channels = map(int, arguments[:5])
    try:
        for images, labels in decode(arguments[5:], start, stop, (height, width, channels)):
            sys.stdout.buffer.write(np.int32(len(labels)).tobytes())
            sys.stdout.buffer.write(images.data)
            sys.stdout.buffer.write(labels.data)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(DAMAGED)


if __name__ == "__main__":
    main(sys.argv[1:])
