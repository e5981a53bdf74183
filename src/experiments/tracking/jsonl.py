"""The record of a run in its folder: `metrics.jsonl` and `summary.json`.

JSON has no NaN or Infinity. They are written as the strings `"NaN"`, `"Infinity"` and
`"-Infinity"`, which every JSON parser reads and `float()` turns back into numbers. `null` could
also mean that nothing was measured.
"""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from experiments.errors import UserError
from experiments.tracking.tracker import RunInfo, Tracker

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
NON_FINITE = ("NaN", "Infinity", "-Infinity")


class JsonLines(Tracker):
    """One line per event, `{"step": 40, "epoch": 0.5, "train/loss": 1.2}`, flushed at once.

    A killed process leaves at most one torn last line. This tracker is the record of the run, so
    a line that cannot be written ends the run with a `UserError`.
    """

    essential = True

    def __init__(self) -> None:
        self._directory = Path()
        self._file: TextIO | None = None

    def start(self, run: RunInfo) -> None:
        self._directory = run.directory
        path = run.directory / METRICS
        with _writing(path):
            if run.start_step and path.exists():
                os.truncate(path, _end_of(path, run.start_step))
            self._file = path.open("a" if run.start_step else "w", encoding="utf-8")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        assert self._file, "log() before start()"
        with _writing(self._directory / METRICS):
            self._file.write(_dumps({"step": step, **scalars}) + "\n")
            self._file.flush()

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._file is None:  # the run never started
            return
        with contextlib.suppress(OSError):  # reported when the line was written
            self._file.close()
        with _writing(self._directory / SUMMARY):
            write_json(self._directory / SUMMARY, {**summary, "status": status})


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the events of a `metrics.jsonl`, without a torn last line; NaN as a float.

    Empty if there is no such file.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [event for line in file if (event := _parse(line)) is not None]


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write indented JSON, as a whole."""
    write_whole(path, _dumps(value, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes | bytearray) -> None:
    """Write a file; a reader finds the old one or the new one, never a part."""
    with whole(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file; it takes the place of `path` at the end of the block.

    Several processes may do so at once. What the block leaves with an error is removed.
    """
    new = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield new
        new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _end_of(path: Path, step: int) -> int:
    """Return the length in bytes of the lines up to and including `step`; steps never decrease.

    Lines of the test are left out: they end a run, and this one goes on.
    """
    end = 0
    with path.open("rb") as file:
        for line in file:
            event = _parse(line)
            if event is None or event["step"] > step or any(k.startswith("test/") for k in event):
                break
            end += len(line)
    return end


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return {k: float(v) if v in NON_FINITE else v for k, v in event.items()}


def _dumps(value: object, indent: int | None = None) -> str:
    def plain(value: Any) -> object:  # a scalar of NumPy or JAX, or a path
        return value.item() if hasattr(value, "item") else str(value)

    return json.dumps(_valid(value), indent=indent, allow_nan=False, default=plain)


def _valid(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _valid(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # Python writes the names without quotes
    return value


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one for the user, while `path` is written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}. "
            "Make room or fix the folder, then resume the run: everything recorded before is there."
        ) from error
