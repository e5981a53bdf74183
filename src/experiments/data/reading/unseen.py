"""Examples in files that are in no data set, read as the training data of a run were."""

import functools
import glob
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from experiments.data import arrays, tables
from experiments.data.dataset import Splits, Stream, some
from experiments.data.examples import Examples
from experiments.data.reading import table
from experiments.data.reading.cache import in_parallel, worth_processes
from experiments.data.reading.pictures import SUFFIXES, decoded, fitted
from experiments.errors import UserError, suggest, unusable
from experiments.machine import expanded

ARRAYS = (".npz", ".npy")
CHANNELS = (1, 3)  # of pictures that files have
Rows = dict[str, list]  # columns that say which examples these are
Batches = Iterator[tuple[Rows, np.ndarray]]


def splits_of(source: Any) -> Splits:
    """Return splits of which nothing is read, in the shapes of a source's examples."""
    size = source.eval_batch_size
    none = Stream(256 if size == -1 else size, lambda *_: iter(()))
    names, found = getattr(source, "class_names", ()), getattr(source, "found", None)
    return Splits(none, none, none, class_names=names, fingerprint="", found=found)


def unseen(source: Any, given: str, warn: Callable[..., None]) -> Callable[[int], Batches]:
    """Find the files that `input=` names, and return what reads them.

    That is called with a number of examples and yields so many at most at a time: columns that say
    which they are, and inputs [n, ...] as the run stores them. Nothing that was read is kept.

    Args:
        source: the data that the run has learnt from.
        given: a file, a folder of pictures, or a pattern of names of files.
        warn: is called with a message, and what is to be put into it, of a file that is left out.

    Raises:
        UserError: there is no such file, or none that the run can read.
    """
    if isinstance(source, Examples) and source.found is None:
        raise UserError(f"input={given}: the run folder has no data.json, which says the scales")
    files = _files(given)
    if isinstance(source, tables.TableFile):
        return functools.partial(_of_each, functools.partial(_table, source), files)
    stored = getattr(source.spec, "stored", {})
    if all(file.lower().endswith(ARRAYS) for file in files):
        if not isinstance(source, arrays.ArrayFile) and "image" not in stored:
            raise UserError(f"input={given}: this run has not learnt from arrays or pictures")
        return functools.partial(_of_each, functools.partial(_array, source), files)
    if "image" not in stored:
        wanted = "of arrays: .npz or .npy" if isinstance(source, arrays.ArrayFile) else None
        raise UserError(
            f"input={given}: this run has learnt from no pictures"
            + (f"; give a file {wanted}" if wanted else " and no table, so that it reads no files")
        )
    pictures = [file for file in files if file.lower().endswith(SUFFIXES)]
    if not pictures:
        kinds = ", ".join(suffix[1:] for suffix in (*SUFFIXES, *ARRAYS))
        raise UserError(f"input={given} has no pictures or arrays ({kinds})")
    shape, workers = _picture_shape(source, given), getattr(source, "workers", 0)
    return functools.partial(_pictures, given, pictures, shape, workers, warn)


def _files(given: str) -> list[str]:
    """Return the files that are meant, in the order of their names; of folders the pictures."""
    path = expanded(given)
    if path.is_dir():
        found = [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(path)
            if not folders.sort()  # type: ignore[func-returns-value]  # the order of the walk
            for name in sorted(names)
            if name.lower().endswith(SUFFIXES) and name[0] != "."
        ]
        if not found:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise UserError(f"input={given} is a folder without pictures ({kinds})")
        return found
    if path.exists() or not glob.has_magic(given):
        try:
            path.open("rb").close()
        except OSError as error:
            raise unusable("input", given, error) from error
        return [str(path)]
    found = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    if not found:
        raise UserError(f"input={given}: no file has such a name")
    return found


def _of_each(read: Callable[[str, int], Iterator[np.ndarray]], files: Sequence[str], size: int):
    """Yield the inputs of one file after another, and their places in it."""
    for file in files:
        first = 0
        for inputs in read(file, size):
            stop = first + len(inputs)
            yield {"file": [file] * len(inputs), "index": list(range(first, stop))}, inputs
            first = stop


# ------------------------------------------------------------------ pictures


def _picture_shape(source: Any, given: str) -> tuple[int, int, int]:
    """Return the shape that pictures get.

    Raises:
        UserError: the run has not learnt from what files of pictures have.
    """
    shape, dtype = source.spec.stored["image"]
    if shape[2] not in CHANNELS:
        raise UserError(f"input={given}: the run has learnt {shape[2]} channels; give .npz")
    if dtype != "uint8" and source.found["range"] not in ([0, 1], [0, 255]):
        low, high = source.found["range"]
        raise UserError(
            f"input={given}: the run has learnt from values of {low:g} to {high:g}, not from bytes "
            f"as pictures have; give .npz"
        )
    return shape


def _pictures(
    given: str,
    files: Sequence[str],
    shape: tuple[int, int, int],
    workers: int,
    warn: Callable[..., None],
    size: int,
) -> Batches:
    """Yield pictures resized to one shape; those that cannot be read are named and left out."""
    tasks = (files[start : start + size] for start in range(0, len(files), size))
    if not worth_processes(len(files), sum(map(os.path.getsize, files))):
        workers = 0
    decode = functools.partial(read_pictures, shape=shape)
    read = 0
    for names, images, lost in in_parallel(decode, tasks, workers, given):
        for name, reason in lost:
            warn("%s cannot be read: %s", name, reason)
        read += len(names)
        if names:
            yield {"file": names}, images
    if not read:
        raise UserError(f"input={given}: none of its {len(files)} pictures can be read")


def read_pictures(
    files: Sequence[str], shape: tuple[int, int, int]
) -> tuple[list[str], np.ndarray, list[tuple[str, str]]]:
    """Return the files that can be read, their pictures uint8 [n, H, W, C], and why others not."""
    images, names, lost = [], [], []
    for file in files:
        try:
            image, _ = decoded(file, max(shape[:2]))
            images.append(np.asarray(fitted(image, shape)).reshape(shape))
            names.append(file)
        except Exception as error:  # of Pillow, which raises many kinds for a damaged file
            lost.append((file, str(error).splitlines()[0] if str(error) else type(error).__name__))
    return names, np.array(images, np.uint8).reshape(-1, *shape), lost


# ------------------------------------------------------------------ arrays


def _array(source: Any, path: str, size: int) -> Iterator[np.ndarray]:
    """Yield the inputs in a file of arrays, read piece by piece."""
    own = isinstance(source, arrays.ArrayFile)
    usual = (source.inputs.lower(),) if own and source.inputs else arrays.INPUTS
    try:
        with _opened(path, usual) as file:
            for values in _pieces(file, size):
                yield _encoded(replace(source, path=path) if own else source, path, values)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"input={path} is no file of NumPy arrays: {said}") from error


def _opened(path: str, usual: Sequence[str]) -> Any:
    """Open the array of a `.npy` file, or that of the inputs in an `.npz` file."""
    if path.lower().endswith(".npy"):
        return open(path, "rb")
    archive = zipfile.ZipFile(path)
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    chosen = names if len(names) == 1 else [n for n in names if arrays.split_name(n)[0] in usual]
    if len(chosen) != 1:
        raise UserError(
            f"input={path}: which are the inputs is not clear: it has {some(names)}; "
            f"say data.inputs=<name>, or give a file of one array"
        )
    return archive.open(f"{chosen[0]}.npy")


def _pieces(file: BinaryIO, size: int) -> Iterator[np.ndarray]:
    """Yield so many rows at a time of an array in the format of NumPy."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0
    if version > (1, 0):
        header = np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save arrays of numbers")
    if not shape:
        raise ValueError("its array is a single number")
    if columns_first:  # whose rows are spread over the file
        whole = np.frombuffer(file.read(), dtype).reshape(shape, order="F")
        yield from (whole[start : start + size] for start in range(0, shape[0], size))
        return
    one = dtype.itemsize * int(np.prod(shape[1:]))
    for start in range(0, shape[0], size):
        count = min(size, shape[0] - start)
        content = file.read(count * one)
        if len(content) < count * one:
            raise ValueError("it ends too early")
        yield np.frombuffer(content, dtype).reshape(count, *shape[1:])


def _encoded(source: Any, path: str, values: np.ndarray) -> np.ndarray:
    """Return inputs as the run stores them; images in bytes are resized where they have to be."""
    if values.dtype.kind not in "buif" or not np.isfinite(values).all():
        raise UserError(f"input={path}: not all of its values are finite numbers")
    if isinstance(source, arrays.ArrayFile):
        return source.encode(values)[1]
    from PIL import Image

    shape = source.spec.stored["image"][0]
    if values.dtype != np.uint8 or values.ndim not in (3, 4):
        there = "x".join(map(str, values.shape[1:]))
        raise UserError(
            f"input={path} has {values.dtype} of {there}; this run has learnt images in bytes, "
            f"uint8 [N, height, width, channels]"
        )
    images = arrays.shaped(values, "image")
    if images.shape[1:] == tuple(shape):
        return images
    if images.shape[3] not in CHANNELS or shape[2] not in CHANNELS:
        there = images.shape[3]
        raise UserError(f"input={path} has {there} channels; the run has learnt {shape[2]}")
    pictures = (Image.fromarray(one.squeeze(-1) if one.shape[2] == 1 else one) for one in images)
    return np.stack([np.asarray(fitted(one, shape)).reshape(shape) for one in pictures])


# ------------------------------------------------------------------ tables


def _table(source: tables.TableFile, path: str, size: int) -> Iterator[np.ndarray]:
    """Yield the inputs of rows of a table, which is read piece by piece."""
    source, columns = replace(source, path=path), source.columns
    reading = source.reading
    try:
        for piece in _row_groups(reading, columns, size):
            for start in range(0, piece.num_rows, size):
                rows = pa.Table.from_batches([piece.slice(start, size)])
                read = [table.plain(column, reading) for column in rows.columns]
                names = [name.strip() for name in rows.column_names]
                yield source.encode(pa.table(read, names))[1]
    except OSError as error:
        raise unusable("input", path, error) from error
    except (ValueError, LookupError, pa.ArrowException) as error:
        said = str(error).removeprefix("CSV parse error: ").splitlines()[0][:200]
        raise UserError(f"input={path} cannot be read as a table: {said}") from error


def _row_groups(
    reading: table.Reading, columns: list[tables.Found], size: int
) -> Iterator[pa.RecordBatch]:
    """Yield parts of a table, with the described columns alone, texts not yet converted."""
    path = expanded(reading.path)
    with path.open("rb") as file:
        start = file.read(table.BEGINNING)
    if start[:4] == b"PAR1":
        rows = parquet.ParquetFile(path)
        names = _chosen(rows.schema_arrow.names, columns, reading.path)
        yield from rows.iter_batches(size, columns=list(names))
        return

    def stream() -> pa.NativeFile:
        return pa.transcoding_input_stream(pa.OSFile(str(path)), reading.encoding, "utf8")

    beginning = start.decode(reading.encoding, "replace").removeprefix("\ufeff")
    with csv.open_csv(stream(), **table.csv_options(reading, beginning)) as reader:
        names = _chosen(reader.schema.names, columns, reading.path)
    numbers = pa.string() if reading.thousands else None  # made numbers of by `plain`
    types = {
        name: numbers or kind
        for name, described in names.items()
        if (kind := tables.type_of(described)) is not None
    }
    options = table.csv_options(reading, beginning, types)
    options["convert_options"].include_columns = list(names)
    with csv.open_csv(stream(), **options) as reader:
        yield from reader


def _chosen(
    names: Sequence[str], columns: list[tables.Found], path: str
) -> dict[str, tables.Found]:
    """Return the described columns by their name in a file; raise `UserError` if one is missing."""
    there = {name.strip(): name for name in names}
    wanted = [described["name"] for described in columns]
    if missing := [name for name in wanted if name not in there]:
        raise UserError(
            f"input={path} has no column {some([repr(name) for name in missing])}, from which the "
            f"run has learnt{suggest(missing[0], there)}"
        )
    return {there[described["name"]]: described for described in columns}
