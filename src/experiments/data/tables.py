"""Examples in the rows of a table: a CSV, TSV or Parquet file with columns of any kind."""

import functools
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experiments.data.dataset import (
    ALL,
    Spec,
    as_stored,
    is_number,
    some,
    stamp,
)
from experiments.data.examples import Examples, Raw
from experiments.data.reading.table import Reading, read_table
from experiments.data.sampling import known_count
from experiments.data.targets import ROUNDING, Found, stored_targets
from experiments.errors import UserError, suggest

log = logging.getLogger(__name__)
_warn_once = functools.cache(log.warning)  # a command looks at its data several times

MANY = 100  # different texts of a column, from which on it is left out
MOSTLY = 0.9  # share of numbers in a column, from which on a text in it is a mistake


@dataclass(frozen=True, kw_only=True)
class TableFile(Examples):
    """Rows of a table: from some of its columns others are to be predicted.

    Numbers, dates and truth values are scaled to a mean of 0 and a standard deviation of 1 in the
    training rows; a missing one is the mean, and a further input says that it was missing. Of a
    text there is an input for each value in the training rows, 1 for the row's own; another value
    is none of them. A column that is constant there, or has more than 100 different texts, is left
    out, with a warning. Rows whose target is missing are left out.

    Args:
        target: name of the column to predict, or names of several with numbers.
        features: names of the columns to read; None means all others.
        ignore: names of columns that are not read, such as those of row numbers.
        separator, encoding, decimal, thousands, missing: see `Reading`.
        path, task, held_out and the others: see `Examples`.
    """

    target: str | list[str]
    features: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    separator: str | None = None
    encoding: str = "utf-8"
    decimal: str = "."
    thousands: str | None = None
    missing: list[str] = field(default_factory=list)

    pipeline = staticmethod(as_stored)

    @property
    def spec(self) -> Spec:
        """Shapes and classes, as found in the file or earlier."""
        shape = (sum(map(width, self.columns)),)
        stored = {"sequence": (shape, "float32")} | stored_targets(self._found["target"])
        return Spec(shape, self.outputs, known_count(self.limit), stored)

    @property
    def columns(self) -> list[Found]:
        """The described columns that inputs are made of."""
        return self._found["columns"]

    @property
    def reading(self) -> "Reading":
        """How the file is written."""
        how = (self.separator, self.encoding, self.decimal, self.thousands)
        return Reading(self.path, *how, tuple(self.missing))

    def _rows(self) -> tuple[pa.Table, np.ndarray, tuple[str, ...], str]:
        """Return the table, the split of each row, the targets' names, and the fingerprint."""
        table, content = read_table(self.reading, stamp(self.path))
        names = (self.target,) if isinstance(self.target, str) else tuple(self.target)
        return table, np.full(len(table), ALL), names, content

    def _read(self) -> Raw:
        table, splits, names, content = self._rows()
        features = self.features
        if features is None:
            features = [n for n in table.column_names if n not in (*names, *self.ignore)]
        for key, wanted in (("target", names), ("features", features), ("ignore", self.ignore)):
            for name in wanted:
                if name not in table.column_names:
                    raise UserError(
                        f"data.{key}={name}: {self.path} has no such column, only "
                        f"{some(table.column_names)}{suggest(name, table.column_names)}"
                    )
        if both := set(names) & set(features):
            raise UserError(f"data.features: {some(sorted(both))} is the target")
        columns = [as_targets(table[name], name, self.path) for name in names]
        targets = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
        return Raw(table.select(features), targets, names, splits, content)

    def _describe(self, inputs: pa.Table, rows: np.ndarray) -> Found:
        columns, left_out = [], []
        for name in inputs.column_names:
            described = describe(inputs[name], rows, name, self.path)
            if isinstance(described, str):
                left_out.append(f"{name} ({described})")
            else:
                columns.append(described)
        if left_out:
            _warn_once("%s: columns left out: %s", self.path, ", ".join(left_out))
        if not columns:
            wanted = some(self._raw.names)
            raise UserError(f"{self.path} has no column to predict {wanted} from")
        return {"columns": columns}

    def encode(self, inputs: Any) -> tuple[str, np.ndarray]:
        """Return the model inputs of a table of other examples, such as a pandas DataFrame."""
        try:
            table = pa.table(inputs)
        except (TypeError, ValueError) as error:
            names = some([column["name"] for column in self.columns])
            raise UserError(
                f"give a table, such as a DataFrame, with the columns {names}"
            ) from error
        return super().encode(table)

    def _encode(self, inputs: pa.Table, found: Found) -> tuple[str, np.ndarray]:
        return "sequence", encode(inputs, found["columns"], self.path)


def describe(column: pa.ChunkedArray, rows: np.ndarray, name: str, path: str) -> Found | str:
    """Return what is to be known of a column, from the training rows, or why it is left out."""
    train = column.take(pa.array(rows))
    kind = column.type
    if pa.types.is_null(kind) or train.null_count == len(train):
        return "missing in all training rows"
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return f"no numbers or text, but {kind}"
    if pa.types.is_string(kind):
        check_text(column, name, path)
        categories = sorted(value for value in pc.unique(train).to_pylist() if value is not None)
        if len(categories) > MANY:
            return f"{len(categories)} different texts"
        if len(categories) == 1 and not train.null_count:
            return "constant"
        found: Found = {"name": name, "categories": categories}
        return found | {"missing": bool(train.null_count)}
    values = numbers_of(train)
    there = values[np.isfinite(values)]
    if not len(there):
        return "missing in all training rows"
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(there.mean()), float(there.std())
    if not np.isfinite(deviation):
        raise UserError(f"{path}: column {name!r} has values too large: give it another unit")
    gone = len(there) < len(values)
    if deviation <= ROUNDING * np.abs(there).max():
        if not gone:
            return "constant"
        deviation = 1.0
    found = {"name": name, "mean": mean, "std": deviation, "missing": gone}
    of_numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return found if of_numbers else found | {"type": str(kind)}


def width(column: Found) -> int:
    """Return the number of inputs that a described column gives."""
    return len(column.get("categories", [0])) + column["missing"]


def encode(table: pa.Table, columns: list[Found], path: str) -> np.ndarray:
    """Return the inputs of a model, float32 [rows, inputs], of a table with described columns.

    Raises:
        UserError: a column is not there, or has text where there were numbers.
    """
    parts = []
    for described in columns:
        name = described["name"]
        if name not in table.column_names:
            raise UserError(
                f"{path} has no column {name!r}, from which the run has learnt"
                f"{suggest(name, table.column_names)}"
            )
        column = table[name]
        if "categories" in described:
            text = column if pa.types.is_string(column.type) else pc.cast(column, pa.string())
            places = pc.index_in(text, pa.array(described["categories"], pa.string()))
            where = places.to_numpy(zero_copy_only=False)
            one_hot = where[:, None] == np.arange(len(described["categories"]))
            values, gone = one_hot, text.is_null().to_numpy()
        else:
            if pa.types.is_string(column.type):
                check_text(column, name, path, every=True)
            if pa.types.is_temporal(column.type):  # in the unit of the training rows
                column = column.cast(type_of(described) or column.type)
            given = numbers_of(column)
            gone = ~np.isfinite(given)
            values = np.where(gone, 0.0, (given - described["mean"]) / described["std"])[:, None]
        parts.append(values)
        if described["missing"]:
            parts.append(gone[:, None])
    return np.concatenate(parts, axis=1).astype(np.float32)


def type_of(column: Found) -> pa.DataType | None:
    """Return Arrow's type of a described column; None where it has no short name."""
    if "categories" in column:
        return pa.string()
    try:
        return pa.type_for_alias(column.get("type", "float64"))
    except ValueError:  # of times with a zone
        return None


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return numbers, truth values, dates or times as float64, NaN where one is missing."""
    kind = column.type
    if pa.types.is_temporal(kind):
        wide = pa.int32() if kind.bit_width == 32 else pa.int64()
        column = column.cast(wide)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    return column.cast(pa.float64(), safe=False).to_numpy()


def as_targets(column: pa.ChunkedArray, name: str, path: str) -> np.ndarray:
    """Return targets as numbers or as objects, text or truth values, None where one is missing."""
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise UserError(f"data.target={name}: the column has no numbers or text, but {kind}")
    if pa.types.is_string(kind):
        check_text(column, name, path)
    if pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return np.array(column.to_pylist(), object)
    return numbers_of(column)


def check_text(column: pa.ChunkedArray, name: str, path: str, *, every: bool = False) -> None:
    """Raise a `UserError` where a text is among numbers, or with `every` at all."""
    texts = column.to_pylist()
    wrong = [i for i, text in enumerate(texts) if text is not None and not is_number(text)]
    there = len(texts) - column.null_count
    if wrong and (every or len(wrong) < (1 - MOSTLY) * there):
        raise UserError(
            f"{path}, row {wrong[0] + 2}: column {name!r} has {texts[wrong[0]]!r} among numbers; "
            f"mend it, or if that means missing say 'data.missing=[{texts[wrong[0]]}]'"
        )
