"""`mode=summary`: a model layer by layer, without data or a compiler, and whether it fits here."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from experiments.errors import LESS_MEMORY, SMALLER_STATE
from experiments.tracking.jsonl import write_json
from experiments.tracking.terminal import quantity
from experiments.training.runtime import free_memory
from experiments.viz.layers import SUMS, Layer, Summary, summed
from experiments.viz.summary import summarize

WIDTH = 132  # of the tables where there is no terminal to ask
COLUMNS = ("layer", "output", "field", "parameters", "", "multiplications", "training", "memory")
OF_KINDS = ("kind", "layers", "parameters", "trainable", "multiplications", "training")
ALONE = ("parameters", "multiplications", "training_flops")  # of what is in training only
LEFT = ("layer", "output", "kind", "")  # of the columns, those with text


def main(config: dict[str, Any], directory: Path | None, source: Path | None) -> None:
    """Print the tables; write `model_summary.json`, if a folder is said."""
    summary = summarize(config)
    if directory is not None:
        write_json(directory / "model_summary.json", as_json(summary))
    console = Console(width=None if Console().is_terminal else WIDTH)
    console.print(table(summary))
    console.print(kinds_table(summary))
    print("\n".join(notes(summary)))


def as_json(summary: Summary) -> dict[str, Any]:
    """Return all that is known of a model."""
    sums = {f"total_{name}": summary.total(name) for name in SUMS}
    sizes = {"batch_size": summary.batch_size, "state_bytes": summary.state_bytes}
    sizes["step_bytes"] = summary.step_bytes
    whole = {"depth": summary.depth, "receptive_field": list(summary.receptive_field)}
    alone = {name: getattr(summary.auxiliary, name) for name in ALONE}
    return {
        **sums,
        "total_multiplications": summary.total("multiplications"),
        "resizing_multiplications": summary.resizing,
        **sizes,
        **whole,
        "in_training_only": alone,
        "kinds": {kind: {n: getattr(row, n) for n in SUMS} for kind, row in summary.kinds.items()},
        "blocks": [asdict(block) for block in summary.blocks],
        "layers": [asdict(layer) for layer in summary.layers],
    }


def table(summary: Summary) -> Table:
    """Return one row per layer and one of totals; the sums of a block stand above its layers."""
    shown = _empty(COLUMNS, _cells(summed("total", summary.layers)))
    blocks = {block.name: block for block in summary.blocks}
    begun = set()
    for layer in summary.layers:
        inside = next((name for name in blocks if layer.name.startswith(f"{name}.")), None)
        if inside is not None and inside not in begun:
            begun.add(inside)
            shown.add_row(*_cells(blocks[inside]), style="bold")
        name, *cells = _cells(layer)
        shown.add_row(name if inside is None else f"  {name}", *cells)
    return shown


def kinds_table(summary: Summary) -> Table:
    """Return the sums over the layers of each kind."""
    counts = {
        kind: sum(layer.kind == kind and layer.parameters > 0 for layer in summary.layers)
        for kind in summary.kinds
    }
    shown = _empty(OF_KINDS)
    for kind, row in summary.kinds.items():
        if not counts[kind] and not row.training_flops:
            continue
        trainable = f"{row.parameters - row.frozen:,}" if row.parameters else ""
        cells = (_number(counts[kind]), _number(row.parameters), trainable)
        costs = (_number(row.multiplications), _quantity(row.training_flops))
        shown.add_row(kind, *cells, *costs)
    return shown


def notes(summary: Summary) -> Iterable[str]:
    """Yield the lines below the tables."""
    parameters, frozen = summary.total("parameters"), summary.total("frozen")
    yield f"parameters: {parameters - frozen:,} trainable, {frozen:,} frozen"
    if (alone := summary.auxiliary).parameters:
        multiplications = summary.total("multiplications")
        yield (
            f"in training only (auxiliary classifiers): {alone.parameters:,} of the parameters and "
            f"{alone.multiplications:,} of the multiplications; without them "
            f"{parameters - alone.parameters:,} and {multiplications - alone.multiplications:,}"
        )
    field = "x".join(map(str, summary.receptive_field))
    yield (
        f"depth: {summary.depth} weighted layers on the longest way"
        + (f"; the last maps have a receptive field of {field}" if field else "")
        + f"; connections, biases included: {summary.total('connections'):,}"
    )
    yield (
        f"multiplications: of products and convolutions, for one pass of one example; with the "
        f"additions {quantity(summary.total('flops'))} FLOPs; training: FLOPs of a step of "
        f"{summary.batch_size}"
    )
    if summary.resizing:
        yield f"resizing: {summary.resizing:,} multiplications more for each example"
    yield (
        f"memory: of the outputs for one example; weights and the optimizer's state take "
        f"{quantity(summary.state_bytes, 'B')}"
    )
    needed, free = summary.step_bytes, free_memory(1)
    line = (
        f"a step of {summary.batch_size} takes about {quantity(needed, 'B')} of one device, which "
        f"has {quantity(free, 'B')} free"
    )
    advice = SMALLER_STATE if summary.state_bytes > free else LESS_MEMORY
    yield line if needed <= free else f"{line}: too little\n{advice}"


def _empty(columns: Sequence[str], footer: Sequence[str] | None = None) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_footer=footer is not None, padding=0)
    for title, cell in zip(columns, footer or [""] * len(columns), strict=True):
        justify: JustifyMethod = "left" if title in LEFT else "right"
        folds = title in ("layer", "")  # where a terminal is narrow
        shown.add_column(title, cell, justify=justify, no_wrap=not folds, overflow="fold")
    return shown


def _cells(layer: Layer) -> tuple[str, ...]:
    return (
        f"{layer.name} {layer.title}".strip(),
        "x".join(map(str, layer.output_shape)),
        "x".join(map(str, layer.receptive_field)),
        _number(layer.parameters),
        layer.arithmetic,
        _number(layer.multiplications),
        _quantity(layer.training_flops),
        _quantity(layer.output_bytes, "B"),
    )


def _number(value: int) -> str:
    return f"{value:,}" if value else ""


def _quantity(value: int, unit: str = "") -> str:
    return quantity(value, unit) if value else ""
