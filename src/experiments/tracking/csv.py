"""The record of a run as a table: `metrics.csv`, for a spreadsheet or `pandas.read_csv`."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from experiments.machine import write_whole
from experiments.tracking.jsonl import METRICS, read_history
from experiments.tracking.tracker import RunInfo, Tracker


class Csv(Tracker):
    """`metrics.csv`, one row per line of `metrics.jsonl` and one column per metric.

    It is written when the run ends, since only then all columns are known. A metric that a line
    does not have is left empty.
    """

    def __init__(self) -> None:
        self._directory: Path | None = None

    def start(self, run: RunInfo) -> None:
        self._directory = run.directory

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._directory is None:
            return
        events = read_history(self._directory / METRICS)
        columns = list(dict.fromkeys(key for event in events for key in event))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(events)
        write_whole(self._directory / "metrics.csv", text.getvalue())
