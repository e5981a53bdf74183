"""Time series from a CSV file: windows of what was, and what comes next."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.data.dataset import Arrays, Spec, Splits
from experiments.errors import UserError, suggest
from experiments.types import Decay, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Table:
    """A column of a CSV file to be forecast from its own past and that of other columns.

    The rows are in the order of time. The last `held_out` of them are for testing, as many before
    them for validation, and a window never reaches over such a border. Every column is scaled to
    mean 0 and deviation 1 by the training rows alone.

    Args:
        path: the file; its first line names the columns.
        column: what to forecast; None means the last one.
        inputs: columns that are read; None means `column` alone.
        length: rows that are read.
        horizon: rows that are forecast.
        held_out: share of the rows for validation, and again for test.
        target: "vector": the values at once; "sequence": one after the other, for a model that
            writes.
        limit: use only so many training windows; None uses all.
        batch_size, eval_batch_size: windows a step; -1 is all of them.
    """

    path: str
    column: str | None
    inputs: list[str] | None
    length: PositiveInt
    horizon: PositiveInt
    held_out: Decay
    target: Literal["vector", "sequence"]
    limit: PositiveInt | None
    batch_size: PositiveInt | Literal[-1]
    eval_batch_size: PositiveInt | Literal[-1]

    @property
    def spec(self) -> Spec:
        features = len(self.inputs) if self.inputs else 1
        sequence = self.target == "sequence"
        stored = {
            "sequence": ((self.length, features), "float32"),
            "target": ((self.horizon, 1) if sequence else (self.horizon,), "float32"),
            "unit": ((), "float32"),
        }
        return Spec((self.length, features), 1 if sequence else self.horizon, self.limit, stored)

    @property
    def pipeline(self) -> Scaled:
        """What the training step applies to each batch."""
        return Scaled()

    def load(self) -> Splits:
        """Reads the file.

        Raises:
            UserError: there is no such file or column, a value is no number, or there are too few
                rows for a window.
        """
        header, rows = self._read()
        column = self.column if self.column is not None else header[-1]
        places = {name: index for index, name in enumerate(header)}
        wanted = [*(self.inputs or [column]), column]
        for name in wanted:
            if name not in places:
                raise UserError(
                    f"{self.path} has no column {name!r}, only {', '.join(header)}"
                    f"{suggest(name, header)}"
                )
        values = np.array([self._numbers(rows, name, places[name]) for name in wanted]).T
        share = round(len(values) * self.held_out)
        cut = len(values) - 2 * share
        parts = {
            "train": values[: max(cut, 0)],
            "validation": values[max(cut, 0) : len(values) - share],
            "test": values[len(values) - share :],
        }
        mean, deviation = self._scale(parts["train"])
        unit = deviation[-1]
        splits = {
            split: self._windows(split, (part - mean) / deviation, unit)
            for split, part in parts.items()
        }
        splits["train"] = splits["train"].take(np.arange(len(splits["train"]))[: self.limit])
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:16]
        return Splits(**splits, class_names=(), fingerprint=digest)

    def _read(self) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """The names of the columns, and (line number, cells) of every row that is not empty."""
        path = Path(self.path).expanduser()
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                header = [name.strip() for name in next(reader, [])]
                rows = [(reader.line_num, row) for row in reader if row]
        except FileNotFoundError:
            raise UserError(f"data.path={self.path}: there is no such file") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"data.path={self.path} cannot be read as CSV: {error}") from error
        if not header:
            raise UserError(f"data.path={self.path}: the file is empty")
        return header, rows

    def _numbers(self, rows: list[tuple[int, list[str]]], name: str, place: int) -> list[float]:
        numbers = []
        for line, row in rows:
            cell = row[place] if place < len(row) else ""
            try:
                number = float(cell)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise UserError(
                    f"{self.path}, line {line}: column {name!r} has {cell!r}, which is no number"
                )
            numbers.append(number)
        return numbers

    def _scale(self, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every column, of a constant one 1."""
        if not len(train):
            raise UserError(f"data.held_out={self.held_out} leaves no rows for training")
        deviation = train.std(axis=0)
        return train.mean(axis=0), np.where(deviation > 0, deviation, 1.0)

    def _windows(self, split: str, values: np.ndarray, unit: float) -> Arrays:
        span = self.length + self.horizon
        if len(values) < span:
            raise UserError(
                f"the {split} split of {self.path} has {len(values)} rows, fewer than the "
                f"{self.length} + {self.horizon} of a window: lower data.length or data.horizon"
                + ("" if split == "train" else ", or raise data.held_out")
            )
        index = np.arange(len(values) - span + 1)[:, None] + np.arange(span)
        windows = values[index].astype(np.float32)
        target = windows[:, self.length :, -1]
        if self.target == "sequence":
            target = target[..., None]
        sequence = windows[:, : self.length, :-1]
        unit_of_each = np.full(len(windows), unit, np.float32)
        return Arrays({"sequence": sequence, "target": target, "unit": unit_of_each})


class Scaled:
    """Windows are stored as a model reads them."""

    def __call__(self, batch: Mapping[str, Any], key: Any = None, *, train: bool) -> dict[str, Any]:
        """The batch as it is."""
        return dict(batch)
