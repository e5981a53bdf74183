"""Data sets of Hugging Face: images with classes, and columns of numbers and text."""

import functools
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experiments.data.arrays import TARGETS
from experiments.data.dataset import ALL, SPLITS, Spec, Splits, fingerprint, some
from experiments.data.folder import Folder, FolderImages
from experiments.data.images import Images
from experiments.data.reading.pictures import Cell, Source
from experiments.data.tables import TableFile, as_targets
from experiments.data.targets import Task, describe_target, labels_of, missing
from experiments.errors import UserError, suggest
from experiments.machine import expanded
from experiments.types import Decay

log = logging.getLogger(__name__)

SAVED = ("dataset_dict.json", "state.json")  # files of a folder that `save_to_disk` has written
SECONDS = 5.0  # in which the hub has to answer


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Images):
    """A data set of the Hugging Face hub, or one that `save_to_disk` has written.

    Images with a class are read as `FolderImages` reads them, anything else as the rows of a
    `TableFile`, where a list of numbers is a column for each. Splits are known by their names; one
    that is not there is drawn from the training examples.

    Args:
        name: on the hub ("mnist", "user/data"), or a folder. What is in the local cache is taken
            from there, without a network.
        config: its name, of a data set that has several.
        image: the column of images; None finds it, if there is one.
        target: the column to predict, or several with numbers; None finds that of classes.
        features, ignore: columns of numbers and text to read, and not to read; see `TableFile`.
        task, found: see `Examples` and `FolderImages`.
        held_out: share of the training examples for validation, and again for test.
        image_size, mean, std and the others: of images, see `FolderImages`.
    """

    name: str
    config: str | None = None
    image: str | None = None
    target: str | list[str] | None = None
    features: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    task: Task | None = None
    held_out: Decay = 0.15
    found: dict[str, Any] | None = None

    @cached_property
    def _source(self) -> Any:
        """What reads images, or a table; what was found earlier says which."""
        if self.found:
            images = "columns" not in self.found
        else:
            images = Opened.find(self.name, self.config).image(self.image) is not None
        kind: Any = HubImages if images else HubTable
        names = {one.name for one in fields(kind)} & {one.name for one in fields(self)}
        return kind(path=self.name, **{name: getattr(self, name) for name in names})

    @property
    def spec(self) -> Spec:
        """Shapes and classes, as found in the data or earlier."""
        return self._source.spec

    @property
    def pipeline(self) -> Any:
        """The part of the training step that prepares each batch."""
        return self._source.pipeline

    @property
    def predicts(self) -> Task | None:
        """What the targets ask for."""
        return self._source.predicts

    def load(self) -> Splits:
        """Open and read the data set.

        Raises:
            UserError: it is not there, or for what `FolderImages` and `TableFile` refuse.
        """
        of, source = Opened.find(self.name, self.config), self._source
        inputs = of.image(self.image) if isinstance(source, HubImages) else "the other columns"
        target = of.target(self.target) or "nothing"
        log.info("%s: %s is predicted from %s", self.name, target, inputs)
        return source.load()


@dataclass(frozen=True, kw_only=True)
class HubFolder(Folder):
    """The pictures of a data set in place of those of a folder."""

    cells: tuple[Cell, ...]

    def paths(self) -> list[Source]:
        """Return each picture."""
        return list(self.cells)


@dataclass(frozen=True, kw_only=True)
class HubImages(FolderImages):
    """The images of a data set and their classes; see `HuggingFace`."""

    config: str | None
    image: str | None
    target: str | list[str] | None

    predicts = "classification"

    @cached_property
    def _folder(self) -> Folder:
        of = Opened.find(self.path, self.config)
        image, target = of.image(self.image), of.target(self.target)
        if image is None:
            raise UserError(f"{self.path} has no images, from which the run has learnt")
        targets: np.ndarray = np.full(len(of.split), "unlabelled")
        classes: list[str] | None = ["unlabelled"]
        if target is not None:
            if not isinstance(target, str) or target not in of.features:
                there = f"{some(list(of.features))}{suggest(str(target), of.features)}"
                raise UserError(
                    f"data.target={target}: {self.path} has no such column, only {there}"
                )
            targets = as_targets(of.table([target])[target], target, self.path)
            named = of.classes(target)
            classes = named or describe_target(targets, None, (target,), self.path).get("classes")
        if not classes:
            raise UserError(f"data.target={target}: {self.path} has numbers there, no classes")
        rows = np.flatnonzero(~missing(targets))
        if lost := len(targets) - len(rows):
            log.warning("%s: left out, as %s is missing: %d", self.path, target, lost)
        cells = of.cells(image)
        times = [(str(path), path.stat().st_mtime_ns) for path in of.files]
        return HubFolder(
            path=self.path,
            classes=tuple(classes),
            files=tuple(str(cells[row]) for row in rows),
            labels=labels_of(targets[rows], classes, self.path),
            splits=of.split[rows],
            size=sum(path.stat().st_size for path in of.files),
            fingerprint=of.fingerprint,
            changed=fingerprint(f"{of.fingerprint} {times} {image} {target}".encode()),
            cells=tuple(cells[row] for row in rows),
        )


@dataclass(frozen=True, kw_only=True)
class HubTable(TableFile):
    """The columns of a data set; see `HuggingFace`."""

    target: Any
    config: str | None

    def _rows(self) -> tuple[pa.Table, np.ndarray, tuple[str, ...], str]:
        of = Opened.find(self.path, self.config)
        target = of.target(self.target)
        if target is None:
            columns = some(list(of.features))
            raise UserError(f"{self.path} has {columns}, none of classes: say data.target=")
        names = (target,) if isinstance(target, str) else tuple(target)
        return of.table(), of.split, names, of.fingerprint


@dataclass(frozen=True)
class Opened:
    """A data set with its splits, named as in `PARTS`, or `ALL`; all have the same columns."""

    name: str
    splits: Mapping[str, Any]

    @classmethod
    def find(cls, name: str, config: str | None) -> "Opened":
        """Open a data set: a folder, what is in the cache, or one that is fetched from the hub.

        Raises:
            UserError: there is none, or no split for training.
        """
        marks = [expanded(name) / file for file in SAVED]
        times = tuple(mark.stat().st_mtime_ns for mark in marks if mark.is_file())
        found = opened(name, config, times)
        if not isinstance(found, Mapping):
            return cls(name, {ALL: found})
        splits = {SPLITS.get(split.lower(), ""): data for split, data in found.items()}
        if len(found) == 1:
            splits = {ALL: next(iter(found.values()))}
        elif "train" not in splits:
            raise UserError(f"{name} has no split train, only {some(list(found))}")
        if unknown := [split for split in found if split.lower() not in SPLITS and len(found) > 1]:
            log.warning("%s: splits left out: %s", name, some(unknown))
        return cls(name, {split: data for split, data in splits.items() if split})

    @property
    def features(self) -> Mapping[str, Any]:
        """The kind of each column."""
        return next(iter(self.splits.values())).features

    @cached_property
    def split(self) -> np.ndarray:
        """The split of each row."""
        return np.concatenate([np.full(len(data), name) for name, data in self.splits.items()])

    @property
    def files(self) -> list[Path]:
        """The files that the data are in."""
        named = [file["filename"] for data in self.splits.values() for file in data.cache_files]
        return [Path(name) for name in dict.fromkeys(named)]

    @property
    def fingerprint(self) -> str:
        """Identifies the content, by the names and sizes of the files."""
        counts = [f"{split} {len(data)}" for split, data in self.splits.items()]
        sizes = [f"{path.name} {path.stat().st_size}" for path in self.files]
        return fingerprint("\n".join([*counts, *sizes]).encode())

    def image(self, said: str | None) -> str | None:
        """Return the column of images: the one that is said, or the only one."""
        found = self._of_type("Image")
        if said is not None and said not in found:
            where = f"only in {some(found)}{suggest(said, found)}" if found else "in no column"
            raise UserError(f"data.image={said}: {self.name} has images {where}")
        if said is not None:
            return said
        if len(found) > 1:
            raise UserError(f"{self.name} has images in {some(found)}: say which by data.image=")
        return found[0] if found else None

    def target(self, said: str | list[str] | None) -> str | list[str] | None:
        """Return the column to predict: what is said, that of classes, or with a usual name."""
        if said is not None:
            return said
        found = self._of_type("ClassLabel")
        found = found or [name for name in self.features if name.lower() in TARGETS]
        if len(found) > 1:
            raise UserError(f"{self.name} has classes in {some(found)}: say which by data.target=")
        return found[0] if found else None

    def classes(self, column: str) -> list[str] | None:
        """Return the names of the classes in their order, of a column that knows them."""
        return getattr(self.features[column], "names", None)

    def cells(self, image: str) -> list[Cell]:
        """Return the pictures of all splits."""
        from datasets import Image

        found = []
        for split, data in self.splits.items():
            encoded = data.select_columns([image]).cast_column(image, Image(decode=False))
            found += [Cell(encoded, image, row, split) for row in range(len(data))]
        return found

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return columns of all splits, all but images, with the names of classes."""
        images = self._of_type("Image")
        columns = columns or [name for name in self.features if name not in images]
        chosen = [data.select_columns(columns) for data in self.splits.values()]
        parts = [data.with_format("arrow")[:] for data in chosen]
        whole = pa.concat_tables(parts).combine_chunks()
        arrays: dict[str, pa.ChunkedArray] = {}
        for name in columns:
            column, classes = whole[name], self.classes(name)
            if classes is not None:
                known = pc.if_else(pc.less(column, 0), pa.scalar(None, column.type), column)
                arrays[name] = pc.take(pa.array(classes), known)
            else:
                arrays |= flat(name, column)
        return pa.table(arrays)

    def _of_type(self, kind: str) -> list[str]:
        return [name for name, one in self.features.items() if type(one).__name__ == kind]


def flat(name: str, column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """Return a column, or one for each place in its lists where these are equally long."""
    if not pa.types.is_nested(column.type) or not hasattr(column.type, "value_type"):
        return {name: column}
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        return {name: column}
    return {f"{name}.{i}": pc.list_element(column, i) for i in range(lengths[0])}


# ------------------------------------------------------------------ files


@functools.lru_cache(maxsize=1)  # a command asks for the shapes and for the examples
def opened(name: str, config: str | None, saved: tuple[int, ...]) -> Any:
    """Return a data set of the package `datasets`, or several by the names of their splits.

    Args:
        name, config: see `HuggingFace`.
        saved: when `save_to_disk` has written it, if it is such a folder.

    Raises:
        UserError: the package is missing, or the data set is not to be had.
    """
    logging.getLogger("datasets").setLevel(logging.WARNING)
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(
            "data=huggingface needs the package datasets: pip install 'experiments[huggingface]'"
        ) from error
    where = str(expanded(name)) if expanded(name).is_dir() else name
    try:
        if saved:
            return datasets.load_from_disk(where)
        forbidden = datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = True  # this machine first
        try:
            return datasets.load_dataset(where, config)
        except ConnectionError:
            why = "HF_HUB_OFFLINE is set" if forbidden else silence(datasets.config.HF_ENDPOINT)
            if why:
                raise UserError(
                    f"data.name={name}: no folder, not in the cache of Hugging Face, and {why}"
                ) from None
        finally:
            datasets.config.HF_HUB_OFFLINE = forbidden
        return datasets.load_dataset(name, config)
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"data.name={name} cannot be opened: {said}") from error


def silence(address: str) -> str | None:
    """Return that a server does not answer, or None; the package would ask for half a minute."""
    try:
        asked = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(asked, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except OSError:
        return f"{address} does not answer"
    return None
