"""Runs side by side, from what they wrote."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.errors import UserError
from experiments.tracking.terminal import number


def print_comparison(folder: Path) -> None:
    """A table of the finished runs below `folder`, best validation first.

    Raises:
        UserError: there is no run below `folder`.
    """
    runs = sorted(find_runs(folder), key=lambda run: _accuracy(run[1]), reverse=True)
    if not runs:
        raise UserError(f"there is no finished run (summary.json) below {folder}")
    table = Table(box=None, header_style="bold")
    for name in ("run", "status", "best val", "test", "epochs", "seconds", "examples/s"):
        table.add_column(name, justify="left" if name in ("run", "status") else "right")
    table.columns[0].overflow = "fold"  # a run must stay readable as a path
    for path, summary in runs:
        shown = (
            _accuracy(summary),
            summary.get("test/accuracy"),
            summary.get("epoch"),
            summary.get("seconds"),
            summary.get("examples_per_second"),
        )
        cells = [number(value) if isinstance(value, int | float) else "" for value in shown]
        table.add_row(str(path.relative_to(folder)), str(summary.get("status")), *cells)
    Console().print(table)


def find_runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(run folder, summary) of every run below `folder` that has ended."""
    paths = sorted(folder.rglob("summary.json"))
    return [(path.parent, json.loads(path.read_text())) for path in paths]


def _accuracy(summary: dict[str, Any]) -> float:
    best = summary.get("best") or {}
    return best.get("val/accuracy", float("-inf"))
