"""The record of a run in its folder: `metrics.jsonl` and `summary.json`.

JSON has no NaN or Infinity. They are written as the strings `"NaN"`, `"Infinity"` and
`"-Infinity"`, which every JSON parser reads and `float()` turns back into numbers. `null` could
also mean that nothing was measured.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from experiments.errors import UserError
from experiments.machine import write_whole
from experiments.tracking.tracker import RunInfo, Tracker

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
NON_FINITE = ("NaN", "Infinity", "-Infinity")
SHOWN = 5  # numbers of damaged lines in a message


class JsonLines(Tracker):
    """One line per event, `{"step": 40, "epoch": 0.5, "train/loss": 1.2}`, flushed at once.

    A killed process leaves at most one torn last line. A run that goes on keeps the lines before
    its checkpoint; those of the test end a run, so they are not among them. This tracker is the
    record of the run: a line that cannot be written ends the run with a `UserError`.
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
                kept = [line for line, event in _read(path) if _before(run.start_step, event)]
                write_whole(path, b"".join(kept))
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
    """Return the events of a `metrics.jsonl`, NaN as a float; none if there is no such file.

    Lines that cannot be read are left out with a warning.
    """
    return [event for _, event in _read(path)] if path.exists() else []


def read_mapping(
    path: Path, parse: Callable[[str], Any] = json.loads, advice: str = "restore it from a copy"
) -> dict[str, Any]:
    """Return the mapping that a file of text holds.

    Args:
      parse: reads the text.
      advice: what to do about a damaged file, for the message.

    Raises:
        UserError: it is empty, torn, binary or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = parse(text) if text.strip() else None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged: {reason}\n{advice}") from error
    if not isinstance(value, Mapping):
        reason = "it is empty" if value is None else "these are no keys with values"
        raise UserError(f"{path} is damaged: {reason}\n{advice}")
    return dict(value)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write indented JSON, as a whole."""
    write_whole(path, _dumps(value, indent=2) + "\n")


def _read(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each line that can be read, with its event; say which lines cannot."""
    found, damaged = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if (event := _parse(line)) is None:
                damaged.append(number)
            else:
                found.append((line.rstrip(b"\n") + b"\n", event))
    if damaged:
        numbers = ", ".join(map(str, damaged[:SHOWN])) + ", ..." * (len(damaged) > SHOWN)
        what = f"line {numbers}" if len(damaged) == 1 else f"{len(damaged)} lines ({numbers})"
        log.warning("%s: what cannot be read is left out: %s", path, what)
    return found


def _before(step: int, event: Mapping[str, Any]) -> bool:
    return event["step"] <= step and not any(name.startswith("test/") for name in event)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line; None for one that was torn or damaged."""
    try:
        event = json.loads(line)
        event = {k: float(v) if v in NON_FINITE else v for k, v in event.items()}
    except (ValueError, AttributeError, RecursionError):
        return None
    numbers = all(isinstance(value, int | float) for value in event.values())
    return event if numbers and isinstance(event.get("step"), int) else None


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
