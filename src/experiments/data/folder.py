"""Pictures in a folder for each class: found, looked at once, and resized to one shape."""

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import (
    ALL,
    SPLITS,
    Splits,
    absent_classes,
    fingerprint,
    number_of,
    parts_of,
    some,
)
from experiments.data.images import Images
from experiments.data.reading.cache import cache_folder
from experiments.data.reading.pictures import SUFFIXES, FolderRecords, Scan, Source, scan
from experiments.errors import UserError, unusable
from experiments.machine import expanded
from experiments.types import Decay

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """The files of a folder of pictures, in the order of their names; none has been opened.

    Args:
        path: as the config says it.
        classes: the names of the folders, sorted.
        files: relative to the folder.
        labels: class of each file, int32 [N].
        splits: split of each file, `ALL` where the folder has none.
        size: of all files, in bytes.
        fingerprint: of the names and sizes of the files; `changed` is of their times too.
    """

    path: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    size: int
    fingerprint: str
    changed: str

    @classmethod
    def find(cls, path: str) -> "Folder":
        """List a folder.

        Raises:
            UserError: there is none, or no folder for each class with pictures in it.
        """
        root = expanded(path)
        try:
            found = []
            for name, split in _splits(root).items():
                for label in _folders(root / name):
                    found += [
                        (f"{name}/{label}/{file}".lstrip("/"), split, label, status)
                        for file, status in _pictures(root / name / label)
                    ]
        except OSError as error:
            raise unusable("data.path", path, error) from error
        if not found:
            raise UserError(_why_empty(path, root))
        files, of, labels, statuses = zip(*found, strict=True)
        classes = tuple(sorted(set(labels)))
        numbers = {label: i for i, label in enumerate(classes)}
        sizes = [f"{file} {one.st_size}" for file, one in zip(files, statuses, strict=True)]
        times = [str(one.st_mtime_ns) for one in statuses]
        return cls(
            path,
            classes,
            files,
            np.array([numbers[label] for label in labels], np.int32),
            np.array(of),
            sum(one.st_size for one in statuses),
            fingerprint(os.fsencode("\n".join(sizes))),
            fingerprint(os.fsencode("\n".join([str(root.resolve()), *sizes, *times]))),
        )

    def paths(self) -> list[Source]:
        """Return the path of each file."""
        root = expanded(self.path)
        return [str(root / file) for file in self.files]


def _splits(root: Path) -> dict[str, str]:
    """Return the split of each folder above those of the classes; "" where there are none.

    A folder `train` with pictures in it, beside others, is a class.
    """
    names = {name: SPLITS.get(name.lower(), "") for name in _folders(root)}
    train = [name for name, split in names.items() if split == "train"]
    if train and all(names.values()) and all(_folders(root / name) for name in train):
        return names
    return {"": ALL}


def _folders(folder: Path) -> list[str]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]


def _pictures(folder: Path) -> list[tuple[str, os.stat_result]]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    named = [e for e in entries if e.name.lower().endswith(SUFFIXES) and e.name[0] != "."]
    known = [(entry.name, entry.stat()) for entry in named]
    return [(name, status) for name, status in known if stat.S_ISREG(status.st_mode)]


def _why_empty(path: str, root: Path) -> str:
    wanted = "a class is a folder of pictures, data.path the folder that holds them"
    kinds = f"no pictures ({', '.join(suffix[1:] for suffix in SUFFIXES)})"
    inside = _folders(root)
    if _pictures(root):
        return (
            f"data.path={path} has pictures, but no folder for each class; "
            f"for a model without classes put them into one folder in it"
        )
    deeper = [f"{name}/{inner}" for name in inside for inner in _folders(root / name)]
    if deeper:
        return f"data.path={path} has folders in its folders ({some(deeper)}): {wanted}"
    return f"data.path={path} has {kinds} in its folders: {wanted}"


@dataclass(frozen=True)
class FolderPictures:
    """The readable pictures of a folder in one shape: `Pictures` of the one split `ALL`."""

    folder: Folder
    rows: np.ndarray  # of the files that can be read
    labels: np.ndarray  # of these, int32 [M]
    picture_shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        return self.folder.path

    @property
    def cache_key(self) -> str:
        """The folder of its decoded pictures in that of all decoded data."""
        labels = fingerprint(self.labels.tobytes())  # a run may have its own order of the classes
        shape = "x".join(map(str, self.picture_shape))
        return f"folders/{self.folder.changed}/{shape}-{labels}"

    def num_examples(self, split: str) -> int:
        """Return the number of all pictures."""
        return len(self.rows)

    def records(self, split: str) -> "FolderRecords":
        """Return all pictures."""
        paths = self.folder.paths()
        chosen = [paths[row] for row in self.rows]
        return FolderRecords(chosen, self.labels, self.picture_shape, self.folder.size)


@dataclass(frozen=True, kw_only=True)
class FolderImages(Images):
    """Pictures in a folder for each class, in files of any format, size and colours.

    There may be folders `train`, `validation` and `test` above those of the classes; a split that
    has none is drawn from the training pictures, a share of each class. The shape is that of all
    pictures; where they differ in size, or are larger than 256, it is a square, its side the median
    of their shorter sides, at most 224. Each picture is then resized to it; what is too long is cut
    off on both sides. Files that cannot be read are named and left out.

    Args:
        path: the folder.
        held_out: share of the training pictures for validation, and again for test.
        image_size: side of a square that all pictures are resized to.
        found: what an earlier command found: `shape`, `classes`, `mean` and `std`.
        split_seed, mean, std and the others: see `Images`; a mean or std of None is that of the
            training pictures.
    """

    path: str
    held_out: Decay = 0.15
    found: dict[str, Any] | None = None

    def load(self) -> Splits:
        """Read the folder.

        Raises:
            UserError: there is no such folder, nothing in it can be read, a class is none of those
                that were found earlier, or a split is empty.
        """
        folder, scan, found = self._folder, self._scan, self._found
        numbers = {name: i for i, name in enumerate(found["classes"])}
        there = [folder.classes[label] for label in np.unique(folder.labels)]
        if strange := [name for name in there if name not in numbers]:
            raise UserError(
                f"{self.path} has pictures of {some(strange)}, none of the classes that "
                f"the run has learnt: {some(found['classes'])}"
            )
        number = np.array([numbers.get(name, -1) for name in folder.classes], np.int32)
        rows = np.flatnonzero(scan.readable)
        if len(rows) < len(scan.readable):
            lost = [folder.files[row] for row in np.flatnonzero(~scan.readable)]
            log.warning("%s: left out, as unreadable, %d: %s", self.path, len(lost), some(lost))
        labels = number[folder.labels[rows]]
        pictures = FolderPictures(folder, rows, labels, tuple(found["shape"]))
        parts = self._parts
        chosen = parts | {"train": self._limited(parts["train"], self.path, labels)}
        self._say(chosen, labels, found)
        splits = self._opened(pictures, {part: (ALL, rows) for part, rows in chosen.items()})
        names = self.class_names
        return Splits(**splits, class_names=names, fingerprint=folder.fingerprint, found=found)

    @cached_property
    def _folder(self) -> Folder:
        return Folder.find(self.path)

    @cached_property
    def _scan(self) -> Scan:
        folder = self._folder
        store = cache_folder(self.cache_dir) / "folders" / folder.changed / "scan"
        return scan(folder.paths(), folder.size, self.path, store, self.workers)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        """The indices of each split's pictures, of those that can be read."""
        rows = self._scan.readable
        given, labels = self._folder.splits[rows], self._folder.labels[rows]
        parts = parts_of(given, labels, self.held_out, self.split_seed)
        for part, chosen in parts.items():
            if not len(chosen):
                raise UserError(
                    f"{self.path} has no pictures for {part}: {len(labels)} in all; "
                    f"data.held_out={self.held_out} is drawn from each class of 3 and more"
                )
        return parts

    @cached_property
    def _found(self) -> dict[str, Any]:
        """What the pictures say of themselves, or said earlier."""
        if self.found:
            size, side = self.found["shape"][:2], self.image_size
            if side and size != [side, side]:
                learnt = "x".join(map(str, size))
                raise UserError(f"data.image_size={side}: the run has learnt pictures of {learnt}")
            return self.found
        shape = self._scan.shape
        if self.image_size:
            shape = (self.image_size, self.image_size, shape[2])
        train = np.flatnonzero(self._scan.readable)[self._parts["train"]]
        mean, std = self._scan.statistics(train, shape[2])
        classes = list(self._folder.classes)
        return {"shape": list(shape), "classes": classes, "mean": mean, "std": std}

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._found["shape"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the folders."""
        return tuple(self._found["classes"])

    @property
    def _classes(self) -> int:
        return len(self._found["classes"])

    @property
    def _statistics(self) -> tuple[list[float], list[float]]:
        return self.mean or self._found["mean"], self.std or self._found["std"]

    def _say(
        self, parts: Mapping[str, np.ndarray], labels: np.ndarray, found: Mapping[str, Any]
    ) -> None:
        """Log what was found, and classes that are not in every split."""
        height, width, channels = found["shape"]
        mean, std = self._statistics
        log.info(
            "%s: %d pictures of %s, %dx%d in %s; %s; mean %s, std %s",
            *(self.path, len(labels), number_of(found["classes"], "class"), height, width),
            *("grey" if channels == 1 else "colour",),
            ", ".join(f"{len(rows)} for {part}" for part, rows in parts.items()),
            *(mean, std),
        )
        for part, absent in absent_classes(parts, labels, found["classes"]):
            log.warning("%s: no pictures for %s of %s", self.path, part, some(absent))
