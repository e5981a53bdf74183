"""`mode=summary`: a model layer by layer, without data, devices or a compiler."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from experiments.tracking.jsonl import write_json
from experiments.tracking.terminal import quantity
from experiments.viz.summary import Layer, summarize

WIDTH = 120  # of the table where there is no terminal to ask
TOTALS = ("parameters", "flops", "training_flops", "output_bytes")
COLUMNS = ("layer", "output", "parameters", "", "FLOPs", "training", "memory")
NUMBERS = ("parameters", "FLOPs", "training", "memory")  # of the columns


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Print the table and write `model_summary.json`."""
    summary = summarize(config)
    totals: dict[str, Any] = {name: summary.total(name) for name in TOTALS}
    sizes = {"batch_size": summary.batch_size, "state_bytes": summary.state_bytes}
    written = {f"total_{name}": total for name, total in totals.items()} | sizes
    written["layers"] = [asdict(layer) for layer in summary.layers]
    write_json(directory / "model_summary.json", written)
    shown = table(summary.layers, Layer("total", **totals))
    Console(width=None if Console().is_terminal else WIDTH).print(shown)
    print(
        f"FLOPs: 2 per multiply-add of products and convolutions; forward for one example, "
        f"training for a step of {summary.batch_size}\n"
        f"memory: of the outputs for one example; weights and the optimizer's state take "
        f"{quantity(summary.state_bytes, 'B')}"
    )


def table(layers: Sequence[Layer], totals: Layer) -> Table:
    """Return one row per layer and one of totals."""
    shown = Table(box=box.SIMPLE_HEAD, show_footer=True, padding=0)
    for cell, title in zip(_cells(totals), COLUMNS, strict=True):
        justify: JustifyMethod = "right" if title in NUMBERS else "left"
        folds = title in ("layer", "")  # where a terminal is narrow
        shown.add_column(title, cell, justify=justify, no_wrap=not folds, overflow="fold")
    for layer in layers:
        shown.add_row(*_cells(layer))
    return shown


def _cells(layer: Layer) -> tuple[str, ...]:
    return (
        layer.name,
        "x".join(map(str, layer.output_shape)),
        f"{layer.parameters:,}" if layer.parameters else "",
        layer.arithmetic,
        quantity(layer.flops) if layer.flops else "",
        quantity(layer.training_flops) if layer.training_flops else "",
        quantity(layer.output_bytes, "B") if layer.output_bytes else "",
    )
