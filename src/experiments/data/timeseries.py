"""Time series from a CSV file: windows of past rows, and the values that follow them."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv

from experiments.data.dataset import Arrays, Spec, Splits, as_stored, cut, fingerprint, is_number
from experiments.data.sampling import known_count, limited
from experiments.errors import UserError, suggest, unusable
from experiments.machine import expanded
from experiments.types import BatchSize, Decay, Limit, PositiveInt

log = logging.getLogger(__name__)

FLOAT32 = np.finfo(np.float32)
ROUNDING = 8 * np.finfo(float).eps  # of its largest value, the spread of a column that is constant


@dataclass(frozen=True, kw_only=True)
class TimeSeries:
    """A column of a CSV file, forecast from its own past and that of other columns.

    The rows are in the order of time. The last share `held_out` of them is for testing, as many
    before them for validation, and a window never crosses such a border. Every column is scaled by
    the training rows alone, to a mean of 0 and a standard deviation of 1 there. A column that is
    constant there but for rounding is only shifted, with a warning.

    Args:
        path: the file, in UTF-8; its first row names the columns, and each row has as many cells.
            Empty lines are passed over.
        column: the one to forecast; None means the last one.
        inputs: columns that are read; None means `column` alone.
        length: rows that are read.
        horizon: rows that are forecast.
        held_out: share of the rows for validation, and again for test.
        target: "vector": all values at once; "sequence": one after the other, for a model that
            generates a sequence.
        limit: use only so many training windows; or with a float this share; None
            uses all.
        batch_size, eval_batch_size: windows per step; -1 is all of them.
    """

    path: str
    column: str | None
    inputs: list[str] | None
    length: PositiveInt
    horizon: PositiveInt
    held_out: Decay
    target: Literal["vector", "sequence"]
    limit: Limit
    batch_size: BatchSize
    eval_batch_size: PositiveInt | Literal[-1]

    pipeline = staticmethod(as_stored)

    @property
    def spec(self) -> Spec:
        """Shapes of a window and of its forecast."""
        features = len(self.inputs) if self.inputs else 1
        sequence = self.target == "sequence"
        stored = {
            "sequence": ((self.length, features), "float32"),
            "target": ((self.horizon, 1) if sequence else (self.horizon,), "float32"),
            "unit": ((), "float32"),
        }
        return Spec(
            (self.length, features),
            1 if sequence else self.horizon,
            known_count(self.limit),
            stored,
        )

    def load(self) -> Splits:
        """Read the file.

        Raises:
            UserError: there is no such file or column, a row has more or fewer cells, a value is no
                number or beyond those of float32, or there are too few rows for a window.
        """
        names, values = self._read()
        parts = cut(values, self.held_out)
        train = parts["train"]
        if not len(train):
            raise UserError(f"data.held_out={self.held_out} leaves no rows for training")
        mean, deviation = self._scales(names, train, np.abs(values).max(axis=0))
        splits: dict[str, Any] = {
            split: self._windows(split, (part - mean) / deviation, deviation[-1])
            for split, part in parts.items()
        }
        splits["train"] = splits["train"].take(limited(np.arange(len(splits["train"])), self.limit))
        return Splits(**splits, class_names=(), fingerprint=fingerprint(values.tobytes()))

    def _read(self) -> tuple[list[str], np.ndarray]:
        """Return the names of the inputs and of the column, and their values, [rows, names]."""
        parsing = csv.ParseOptions(newlines_in_values=True)
        header: list[str] = []
        try:
            content = pa.py_buffer(expanded(self.path).read_bytes())
            with csv.open_csv(pa.BufferReader(content), parse_options=parsing) as reader:
                header = [name.strip() for name in reader.schema.names]
                given = dict(zip(header, reader.schema.names, strict=True))
            if all(is_number(name) for name in header):
                log.warning("%s: its first row, which is numbers, is taken for names", self.path)
            names = self._chosen(header)
            types = {given[name]: pa.float64() for name in names}
            table = csv.read_csv(
                pa.BufferReader(content),
                csv.ReadOptions(use_threads=False),  # so that errors say the row
                parsing,
                csv.ConvertOptions(column_types=types, include_columns=types, null_values=[]),
            )
        except OSError as error:
            raise unusable("data.path", self.path, error) from error
        except ValueError as error:  # Arrow's
            raise UserError(_complaint(self.path, error, header)) from error
        values = np.stack([table[given[name]].to_numpy() for name in names]).T
        for row, column in np.argwhere(~np.isfinite(values))[:1]:
            found = values[row, column]
            raise UserError(_no_number(self.path, row + 2, names[column], str(found)))
        return names, values

    def _chosen(self, header: list[str]) -> list[str]:
        """Return the names of the inputs and of the column to forecast."""
        column = self.column if self.column is not None else header[-1]
        names = [*(self.inputs or [column]), column]
        for name in names:
            if header.count(name) > 1:
                raise UserError(f"{self.path} has {header.count(name)} columns {name!r}")
            if name not in header:
                raise UserError(
                    f"{self.path} has no column {name!r}, only {', '.join(header)}"
                    f"{suggest(name, header)}"
                )
        return names

    def _scales(
        self, names: list[str], train: np.ndarray, largest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and deviation of each column, whose `largest` value may be of other rows."""
        with np.errstate(over="ignore"):  # refused below
            mean, deviation = train.mean(axis=0), train.std(axis=0)
        for i, name in enumerate(names):
            if np.ptp(train[:, i]) <= ROUNDING * np.abs(train[:, i]).max():
                if name not in names[:i]:
                    log.warning("%s: column %r is constant in the training rows", self.path, name)
                deviation[i] = 1.0
            small = deviation[i] < FLOAT32.tiny
            if small or largest[i] / min(deviation[i], 1.0) > FLOAT32.max:
                raise UserError(
                    f"{self.path}: column {name!r} has values or differences beyond those that "
                    f"float32 holds, {FLOAT32.tiny:.1e} to {FLOAT32.max:.1e}: give it another unit"
                )
        return mean, deviation

    def _windows(self, split: str, values: np.ndarray, unit: float) -> Arrays:
        span = self.length + self.horizon
        if len(values) < span:
            raise UserError(
                f"the {split} split of {self.path} has {len(values)} rows, fewer than the "
                f"{self.length} + {self.horizon} of a window: lower data.length or data.horizon"
                + ("" if split == "train" else ", or raise data.held_out")
            )
        windows = np.lib.stride_tricks.sliding_window_view(values, span, axis=0)
        windows = windows.swapaxes(1, 2).astype(np.float32)  # [N, span, columns]
        target = windows[:, self.length :, -1]
        if self.target == "sequence":
            target = target[..., None]
        sequence = windows[:, : self.length, :-1]
        unit_of_each = np.full(len(windows), unit, np.float32)
        return Arrays({"sequence": sequence, "target": target, "unit": unit_of_each})


def _complaint(path: str, error: ValueError, header: list[str]) -> str:
    """Return in one line what Arrow says of a file."""
    said = str(error).removeprefix("CSV parse error: ").splitlines()[0][:200]
    said = "".join(letter if letter.isprintable() else "?" for letter in said)
    cell = re.match(r"In CSV column #(\d+): Row #(\d+): .* invalid value '(.*?)'?$", said)
    if cell is None:
        return f"{path} cannot be read as cells with commas between them: {said}"
    column, row, value = cell.groups()
    return _no_number(path, row, header[int(column)], value)


def _no_number(path: str, row: Any, name: str, value: str) -> str:
    return f"{path}, row {row}: column {name!r} has {value!r}, which is no number"
