"""`mode=gradcheck`: the gradient of a config's loss against differences, array by array."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.core.config import build
from experiments.core.diagnostics.gradients import GradCheck, Report, Row, check_gradients
from experiments.core.rng import root_key
from experiments.errors import Exit
from experiments.tracking.jsonl import write_json
from experiments.tracking.terminal import Terminal
from experiments.training.evaluation import Data
from experiments.training.feed import training_examples
from experiments.training.restored import pretrained_weights
from experiments.training.setup import Setup

WIDTH = 120  # of the table where there is no terminal to ask
COLUMNS = ("parameters", "size", "checked", "kinks", "error", "float32", "worst entry", "")
NUMBERS = ("size", "checked", "kinks", "error", "float32")


def main(config: dict[str, Any], directory: Path | None, source: Path | None) -> None:
    """Print the table; write `gradcheck.json`, if a folder is said.

    Raises:
        Exit: an array's gradient is wrong; the code is 1.
    """
    wanted: GradCheck = build(config["gradcheck"])
    terminal = Terminal()
    terminal.status("reading data")
    setup = Setup(config, Data(build(config["data"]).load()))
    experiment, key = setup.experiment, root_key(config["seed"])
    found = pretrained_weights(setup) if config["model"]["pretrained"] else None
    weights = experiment.init_weights({}, key, found)
    count = min(wanted.examples, setup.batch_size)
    batch = training_examples(setup.splits.train, setup.batch_size, count, wanted.seed)
    report = check_gradients(experiment, weights, batch, key, wanted, terminal.status)
    terminal.finish({}, "finished")
    rows = [asdict(row) for row in report.rows]
    settings = {"rounding": report.rounding, "step": report.step, "tolerance": report.tolerance}
    if directory is not None:
        write_json(directory / "gradcheck.json", settings | {"rows": rows})
    Console(width=None if Console().is_terminal else WIDTH).print(table(report))
    print(_summary(report, len(next(iter(batch.values())))))
    if not all(row.passed for row in report.rows):
        raise Exit(1)


def table(report: Report) -> Table:
    """Return one row per array of parameters."""
    shown = Table(box=box.SIMPLE_HEAD, padding=0)
    for title in COLUMNS:
        folds = title in ("parameters", "worst entry")
        justify: Any = "right" if title in NUMBERS else "left"
        shown.add_column(title, justify=justify, no_wrap=not folds, overflow="fold")
    for row in report.rows:
        style = None if row.passed else "bold red"
        shown.add_row(*map(escape, _cells(row)), style=style)
    return shown


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.size:,}",
        f"{row.checked:,}",
        str(row.kinks or ""),
        f"{row.error:.1e}",
        "" if row.implementation is None else f"{row.implementation:.1e}",
        f"{list(row.index)} {row.analytic:.6g} against {row.numeric:.6g}",
        "" if row.passed else "fails",
    )


def _summary(report: Report, examples: int) -> str:
    wrong = [row for row in report.rows if not row.passed]
    kind, why = "float64", ""
    if report.is_coarse:
        kind = "float32"
        why = f": a part of the loss is in no other, so that it is rounded by {report.rounding:.0e}"
    lines = [
        f"{len(report.rows) - len(wrong)} of {len(report.rows)} arrays agree with central "
        f"differences in {kind}{why}",
        f"error: ‖a - n‖ / (‖a‖ + ‖n‖), at most {report.tolerance:g}, for {examples} examples "
        f"and steps from {report.step:g} down",
        "float32: the error of the gradient as it is trained, against XLA's own operations",
        "kinks: entries with one slope to the left and another to the right",
    ]
    lines += [
        f"wrong: {row.name}{list(row.index)}: gradient {row.analytic:.6g}, "
        f"difference {row.numeric:.6g}"
        for row in wrong
    ]
    if wrong:
        lines.append(
            "That is a wrong derivative (custom_vjp, custom_jvp), or one that is not the loss's "
            "on purpose (stop_gradient, model.activation=step)."
        )
    return "\n".join(lines)
