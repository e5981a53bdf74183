"""Data sets that TFDS has prepared on disk, found and described without TFDS or TensorFlow."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from experiments.data.dataset import fingerprint
from experiments.errors import UserError, suggest
from experiments.machine import expanded

FORMAT = "array_record"  # TFDS's only format with random access, readable without TensorFlow
SHIPPED = Path(__file__).parents[1] / "shipped"  # data sets in this package: the digits
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of a file's name where none is given
VERSION = re.compile(r"\d+\.\d+\.\d+")
# names of data sets whose publishers give them, where TFDS wrote none beside the data
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
    plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASSES = {
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"),
        "truck",
    ),
    "cifar100": tuple(CIFAR100.split()),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"),
        *("Bag", "Ankle boot"),
    ),
}

# what a test result of a shipped data set is to be read with
TEST_NOTES = {"digits": "other people wrote the test digits than those of training and validation"}

Kind = Literal["image", "text"]


def data_dir(directory: str | None) -> Path:
    """Return the folder of prepared data.

    That is `directory`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    directory = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return expanded(directory)


@dataclass(frozen=True)
class Prepared:
    """One version of a data set of labelled images or of text, prepared by TFDS in `folder`.

    Args:
        info: contents of TFDS's `dataset_info.json`.
        size: (height, width) of every picture; None where pictures differ, and for text.
        channels: of every picture; 0 for text.
        num_classes: 0 where nothing is labelled.
    """

    name: str
    folder: Path
    info: dict[str, Any]
    size: tuple[int, int] | None
    channels: int
    num_classes: int

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every picture.

        Raises:
            UserError: they differ in size.
        """
        if self.size is None:
            raise UserError(
                f"the pictures of data set {self.name!r} differ in size: "
                f"set data.image_size (and data.input_shape to match)"
            )
        return *self.size, self.channels

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split["name"] for split in self.info["splits"])

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.splits:
            raise UserError(
                f"data set {self.name!r} has no split {split!r}, only {', '.join(self.splits)}"
                f"{suggest(split, self.splits)}"
            )
        return self.info["splits"][self.splits.index(split)]

    def shard_lengths(self, split: str) -> list[int]:
        return [int(length) for length in self._split(split)["shardLengths"]]

    def num_examples(self, split: str) -> int:
        return sum(self.shard_lengths(split))

    def shards(self, split: str) -> list[Path]:
        """Return the files of a split, in order.

        Raises:
            UserError: there is no such split, or a file is missing.
        """
        template = self._split(split).get("filepathTemplate") or TEMPLATE
        total, paths = len(self.shard_lengths(split)), []
        for i in range(total):
            name = template.format(
                DATASET=self.name.partition("/")[0],
                SPLIT=split,
                FILEFORMAT=FORMAT,
                SHARD_INDEX=f"{i:05d}",
                NUM_SHARDS=f"{total:05d}",
                SHARD_X_OF_Y=f"{i:05d}-of-{total:05d}",
            )
            paths.append(self.folder / name)
            if not paths[-1].is_file():
                raise UserError(f"{paths[-1]} is missing.\n{self.remedy}")
        return paths

    def records(self, split: str) -> Any:
        """Return the examples of a split; see `Records`."""
        from experiments.data.reading.records import Records  # imports array_record

        return Records(self, split)

    @property
    def cache_key(self) -> str:
        """The folder of its decoded pictures in that of all decoded data."""
        return f"{self.name}/{self.folder.name}/{self.fingerprint}"

    def check(self, key: str, configured: Any, actual: Any) -> None:
        """Raise a `UserError` where `data.<key>` is set and contradicts the data."""
        if configured is not None and configured != actual:
            raise UserError(
                f"data.{key} is {configured}, but the data prepared in {self.folder} have "
                f"{actual}: set data.{key}={str(actual).replace(' ', '')}"
            )

    @property
    def remedy(self) -> str:
        """The advice to a user whose files are damaged."""
        return f"Remove {self.folder} and prepare it again: make data DATA={self.name}"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names TFDS wrote beside the data, else those that are known, else the numbers."""
        path = self.folder / "label.labels.txt"
        if not path.is_file():
            known = CLASSES.get(self.name, ())
            numbers = tuple(map(str, range(self.num_classes)))
            return known if len(known) == self.num_classes else numbers
        names = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        if len(names) != self.num_classes:
            raise UserError(f"{path} names {len(names)}, not {self.num_classes}.\n{self.remedy}")
        return tuple(names)

    @property
    def test_note(self) -> str:
        """What is known of the test examples of a data set that ships with this package."""
        return TEST_NOTES.get(self.name, "") if self.folder.is_relative_to(SHIPPED) else ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the description and of the names and sizes of all files, 16 hex digits."""
        files = [f"{path.name} {path.stat().st_size}\n" for path in sorted(self.folder.iterdir())]
        return fingerprint("".join([json.dumps(self.info, sort_keys=True), *files]).encode())


WITHOUT = "mode=summary takes data.input_shape=[28,28,1] data.num_classes=10 in the place of data"


def locate(name: str, version: str | None, directory: str | None, kind: Kind = "image") -> Prepared:
    """Return a prepared data set: from the folder of prepared data, or shipped with this package.

    Args:
        name, version, kind: see `find`.
        directory: see `data_dir`.

    Raises:
        UserError: it is unknown, not prepared, or not usable.
    """
    folder = data_dir(directory)
    found = find_here(name, version, directory, kind)
    if found is None:
        try:
            check_name(name, folder)
        except UserError as error:
            raise UserError(f"{error}\n{WITHOUT}") from error
        raise UserError(
            f"data set {name!r} is not prepared in {folder}. Prepare it: make data DATA={name}\n"
            f"or name the folder that has it by TFDS_DATA_DIR or data.dir"
        )
    return found


def find_here(
    name: str, version: str | None, directory: str | None, kind: Kind = "image"
) -> Prepared | None:
    """Return what `locate` does, or None where it is not prepared on this machine."""
    found = find(name, version, data_dir(directory), kind)
    return found or find(name, version, SHIPPED, kind)


def find(name: str, version: str | None, directory: Path, kind: Kind | None) -> Prepared | None:
    """Return the prepared data set `name`, or None where `directory` has none.

    Args:
        name: as in TFDS, "mnist" or with a configuration, "imagenet_resized/32x32".
        version: None takes the newest prepared.
        directory: laid out by TFDS, `directory/name[/config]/version`.
        kind: what the data set must hold; None accepts both.

    Raises:
        UserError: it is there but of another version, configuration or file format, or of another
            kind than labelled images or text.
    """
    root = directory / name
    versions = _versions(root)
    if not versions and root.is_dir():
        configs = sorted(p.name for p in root.iterdir() if p.is_dir() and _versions(p))
        if len(configs) > 1:
            raise UserError(
                f"data set {name!r} is prepared in {root} in several configurations: "
                f"choose one with data.name={name}/{configs[0]} (or {', '.join(configs[1:])})"
            )
        if configs:
            return find(f"{name}/{configs[0]}", version, directory, kind)
    if not versions:
        return None
    chosen = version or versions[-1]
    if chosen not in versions:
        raise UserError(
            f"data set {name!r} is prepared in {root} as version {', '.join(versions)}, "
            f"not {chosen}: set data.version"
        )
    return _read(name, root / chosen, kind)


def _versions(folder: Path) -> list[str]:
    """Return the versions prepared in `folder`, oldest first."""
    found = [p.parent.name for p in folder.glob("*/dataset_info.json")]
    versions = filter(VERSION.fullmatch, found)
    return sorted(versions, key=lambda name: tuple(map(int, name.split("."))))


def _read(name: str, folder: Path, kind: Kind | None) -> Prepared:
    """Read the description of the data set in `folder`; see `find`."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        described = json.loads((folder / "features.json").read_text())
        found = _described(name, folder, kind, info, described["featuresDict"]["features"])
        for split in found.splits:
            found.num_examples(split)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"the description of data set {name!r} in {folder} cannot be read ({error}).\n"
            f"Remove that folder and prepare it again: make data DATA={name}"
        ) from error
    return found


def _described(
    name: str, folder: Path, kind: Kind | None, info: dict[str, Any], features: dict[str, Any]
) -> Prepared:
    stored_as = info.get("fileFormat", "tfrecord")
    if stored_as != FORMAT:
        raise UserError(
            f"data set {name!r} in {folder} is stored as {stored_as}, which needs TensorFlow to "
            f"read.\nRemove that folder and prepare it as {FORMAT}: make data DATA={name}"
        )
    if kind == "text" and "text" not in features:
        raise UserError(f"data set {name!r} is not text: it has {', '.join(sorted(features))}")
    if kind != "image" and "text" in features:
        labels = features.get("label", {}).get("classLabel", {"numClasses": "0"})
        return Prepared(name, folder, info, None, 0, int(labels["numClasses"]))
    image = features.get("image", {}).get("image")
    label = features.get("label", {}).get("classLabel")
    if image is None or label is None:
        raise UserError(
            f"data set {name!r} is not labelled images: it has {', '.join(sorted(features))}; "
            f"needed are an 'image' and a class 'label'"
        )
    height, width, channels = (int(d) for d in image["shape"]["dimensions"])
    if image.get("dtype", "uint8") != "uint8" or channels not in (1, 3, 4):
        raise UserError(
            f"data set {name!r} has {image.get('dtype')} images of {channels} channels; "
            f"uint8 images of 1, 3 or 4 channels are supported"
        )
    size = (height, width) if height > 0 and width > 0 else None
    return Prepared(name, folder, info, size, channels, int(label["numClasses"]))


def check_name(name: str, folder: Path) -> None:
    """Raise a `UserError` unless TFDS or `folder` knows `name`.

    Asks TFDS for its list only, never the network: TFDS retries that for minutes.
    """
    import tensorflow_datasets as tfds

    known = {"digits", *tfds.list_builders(with_community_datasets=False)}
    if folder.is_dir():
        known |= {path.name for path in folder.iterdir() if path.is_dir()}
    if name.split("/")[0] not in known:
        raise UserError(f"there is no data set {name!r} in TFDS{suggest(name, known)}")
