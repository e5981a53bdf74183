"""Time series from a CSV file: windows of past rows, and the values that follow them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.data.dataset import Arrays, Spec, Splits, as_stored, cut, fingerprint
from experiments.errors import UserError, suggest
from experiments.types import Decay, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Table:
    """A column of a CSV file, forecast from its own past and that of other columns.

    The rows are in the order of time. The last share `held_out` of them is for testing, as many
    before them for validation, and a window never crosses such a border. Every column is scaled by
    the training rows alone, to a mean of 0 and a standard deviation of 1 there.

    Args:
        path: the file; its first line names the columns.
        column: the one to forecast; None means the last one.
        inputs: columns that are read; None means `column` alone.
        length: rows that are read.
        horizon: rows that are forecast.
        held_out: share of the rows for validation, and again for test.
        target: "vector": all values at once; "sequence": one after the other, for a model that
            generates a sequence.
        limit: use only so many training windows; None uses all.
        batch_size, eval_batch_size: windows per step; -1 is all of them.
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
        return Spec((self.length, features), 1 if sequence else self.horizon, self.limit, stored)

    def load(self) -> Splits:
        """Read the file.

        Raises:
            UserError: there is no such file or column, a value is no number, or there are too few
                rows for a window.
        """
        header, rows = self._read()
        column = self.column if self.column is not None else header[-1]
        wanted = [*(self.inputs or [column]), column]
        for name in wanted:
            if name not in header:
                raise UserError(
                    f"{self.path} has no column {name!r}, only {', '.join(header)}"
                    f"{suggest(name, header)}"
                )
        values = np.array([self._numbers(rows, name) for name in wanted]).T
        parts = cut(values, self.held_out)
        if not len(parts["train"]):
            raise UserError(f"data.held_out={self.held_out} leaves no rows for training")
        mean, deviation = parts["train"].mean(axis=0), parts["train"].std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        splits = {
            split: self._windows(split, (part - mean) / deviation, deviation[-1])
            for split, part in parts.items()
        }
        splits["train"] = splits["train"].take(np.arange(len(splits["train"]))[: self.limit])
        return Splits(**splits, class_names=(), fingerprint=fingerprint(values.tobytes()))

    def _read(self) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
        """Return the names of the columns, and (line number, cells) of every row with any cells."""
        path = Path(self.path).expanduser()
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restval="")
                reader.fieldnames = header = [name.strip() for name in reader.fieldnames or []]
                rows = [(reader.line_num, row) for row in reader]
        except FileNotFoundError:
            raise UserError(f"data.path={self.path}: there is no such file") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"data.path={self.path} cannot be read as CSV: {error}") from error
        if not header:
            raise UserError(f"data.path={self.path}: the file is empty")
        return header, rows

    def _numbers(self, rows: list[tuple[int, dict[str, str]]], name: str) -> list[float]:
        numbers = []
        for line, row in rows:
            try:
                number = float(row[name])
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise UserError(
                    f"{self.path}, line {line}: column {name!r} has {row[name]!r}, "
                    f"which is no number"
                )
            numbers.append(number)
        return numbers

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
