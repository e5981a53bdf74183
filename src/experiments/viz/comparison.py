"""Runs side by side: a table in the terminal and a page."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.tracking.terminal import number
from experiments.viz.runs_data import RunData, families, read_runs, replicates

PAGE = "report.html"


def compare_runs(folder: Path) -> None:
    """Print the finished runs below `folder`, best first, and write `report.html` into it.

    Raises:
        UserError: there is no run below `folder`.
    """
    from experiments.viz.runs_page import runs_page

    runs = read_runs(folder)
    console = Console()
    for family in families(runs):
        console.print(_table(family))
        for group in replicates(family):
            mean, deviation, low, high = map(number, group.spread())
            spread = f"{mean} ± {deviation}, {low} to {high}"
            console.print(f"{len(group.runs)} seeds like {group.runs[0].name}: {spread}")
        console.print()
    (folder / PAGE).write_text(runs_page(str(folder), runs), encoding="utf-8")
    print(f"page        {folder / PAGE}")


def _table(runs: list[RunData]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "status", runs[0].metric, "test", "epochs", "seconds", "examples/s"):
        table.add_column(name, justify="left" if name in ("run", "status") else "right")
    table.columns[0].overflow = "fold"  # a run must stay readable as a path
    for run in runs:
        rest = (run.summary.get(k) for k in ("epoch", "seconds", "examples_per_second"))
        shown = (run.value, run.tested, *rest)
        cells = [number(value) if isinstance(value, int | float) else "" for value in shown]
        table.add_row(run.name, str(run.summary.get("status")), *cells)
    return table
