"""Tables in files: CSV, TSV and Parquet, as Arrow reads them."""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from experiments.data.dataset import fingerprint, is_number, some
from experiments.errors import UserError, unusable
from experiments.machine import expanded

log = logging.getLogger(__name__)

SEPARATORS = ",;\t|"
BEGINNING = 2**16  # bytes of a file that have its first line


@dataclass(frozen=True)
class Reading:
    """The arguments of `read_table`: how a file of text is written; None finds out.

    Args:
        path: the file.
        separator: between cells; None takes the commonest of , ; tab and | in the first line.
        encoding: of the text.
        decimal: the sign before the decimals of a number.
        thousands: the sign between groups of digits; None is none.
        missing: what else stands for a missing value, beside nothing, NA, NaN, null and the like.
    """

    path: str
    separator: str | None
    encoding: str
    decimal: str
    thousands: str | None
    missing: tuple[str, ...]


@functools.lru_cache(maxsize=2)  # a command asks for the shapes and for the rows
def read_table(reading: Reading, _stamp: Any) -> tuple[pa.Table, str]:
    """Return a table, texts as strings, and its fingerprint; `_stamp` tells that it has changed.

    Raises:
        UserError: it cannot be read.
    """
    path = reading.path
    try:
        content = expanded(path).read_bytes()
    except OSError as error:
        raise unusable("data.path", path, error) from error
    if content.startswith((b"PK\x03\x04", b"\x93NUMPY", b"\xd0\xcf\x11\xe0")):
        raise UserError(
            f"data.path={path} is no CSV, TSV or Parquet file, but of Excel or NumPy: "
            f"save a table as CSV; arrays are data=arrays"
        )
    try:
        if content[:4] == b"PAR1":
            table = parquet.read_table(pa.BufferReader(content))
        else:
            table = _read_text(content, reading)
    except (ValueError, LookupError, pa.ArrowException) as error:
        said = str(error).removeprefix("CSV parse error: ").splitlines()[0][:200]
        raise UserError(f"data.path={path} cannot be read as a table: {said}") from error
    names = [str(name).strip() for name in table.column_names]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"data.path={path} has several columns {some(twice)}")
    if all(map(is_number, names)):
        log.warning("%s: its first row, which is numbers, is taken for names", path)
    if not len(table):
        raise UserError(f"data.path={path} has no rows")
    columns = [plain(column, reading) for column in table.columns]
    return pa.table(columns, names), fingerprint(content)


def _read_text(content: bytes, reading: Reading) -> pa.Table:
    text = content.removeprefix(b"\xef\xbb\xbf")
    if reading.encoding.lower().replace("-", "") == "utf8":
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"it is not in UTF-8 (byte {error.start}); say data.encoding=latin1, or utf-16"
            ) from error
    else:
        text = text.decode(reading.encoding).encode()
    return csv.read_csv(
        pa.BufferReader(text),
        **csv_options(reading, text.lstrip()[:BEGINNING].decode("utf-8", "replace")),
    )


def csv_options(reading: Reading, text: str, types: Mapping[str, Any] | None = None) -> dict:
    """Return the options of Arrow's readers.

    Args:
        text: how the file begins, at least its first line.
        types: of the columns to read, by name; None reads all, of types that Arrow finds.
    """
    separator = reading.separator
    if separator is None:
        first = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
        separator = max(SEPARATORS, key=first.count)
    usual = csv.ConvertOptions()
    return {
        "read_options": csv.ReadOptions(use_threads=False),  # so that errors say the row
        "parse_options": csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        "convert_options": csv.ConvertOptions(
            strings_can_be_null=True,
            decimal_point=reading.decimal,
            null_values=[*usual.null_values, *reading.missing],
            column_types=types,
            include_columns=list(types or ()),
        ),
    }


def plain(column: pa.ChunkedArray, reading: Reading) -> pa.ChunkedArray:
    """Return a column of strings, numbers or truth values, whatever Arrow's own type."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if not pa.types.is_string(kind):
        return column
    column = pc.utf8_trim_whitespace(column)
    if reading.thousands:
        plain = pc.replace_substring(column, reading.thousands, "")
        plain = pc.replace_substring(plain, reading.decimal, ".")
        try:
            return plain.cast(pa.float64())
        except pa.ArrowInvalid:  # text after all
            return column
    return column
