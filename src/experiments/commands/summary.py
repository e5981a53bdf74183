"""`mode=summary`: a model layer by layer, without data or a compiler, and whether it fits here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from experiments.errors import quantity
from experiments.tracking.jsonl import write_json
from experiments.training import runtime
from experiments.training.devices.layout import Layout
from experiments.training.devices.memory import (
    about_beside,
    advice,
    bytes_per_device,
    said_free,
    taken,
)
from experiments.viz.flops import Cost, size_of
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
    memory = Memory.of(summary, layout_of(config["trainer"], summary))
    if directory is not None:
        write_json(directory / "model_summary.json", as_json(summary, memory))
    console = Console(width=None if Console().is_terminal else WIDTH)
    console.print(table(summary))
    console.print(kinds_table(summary))
    print("\n".join([*notes(summary), *memory.lines(config["trainer"], summary.batch_size)]))


@dataclass(frozen=True)
class Memory:
    """What a training takes of each device, in bytes, counted as a run counts it.

    Args:
      states, weights, params: of the state, the best weights, and the parameters.
      beside: about what a step takes beside them, which a run knows once it is compiled.
    """

    layout: Layout
    states: int
    weights: int
    params: int
    beside: int

    @classmethod
    def of(cls, summary: Summary, layout: Layout) -> "Memory":
        """Return that of the model of a summary."""
        states = bytes_per_device(layout.stacked(summary.state))
        weights = bytes_per_device(layout.stacked(summary.weights))
        params = size_of(summary.state.params)
        beside = about_beside(params, summary.saved_bytes, layout)
        return cls(layout, states, weights, params, beside)

    @property
    def taken(self) -> int:
        """The most that is taken at once."""
        return taken(self.states, self.weights, self.beside)

    def lines(self, trainer: Mapping[str, Any], batch_size: int) -> Iterable[str]:
        """Yield what a run says of it, and what to do where it does not fit."""
        free = runtime.free_memory(self.layout.mesh.size)
        held = quantity(self.states + self.weights, "B")
        yield (
            f"a device holds {held} of states and best weights; a step of {batch_size} takes about "
            f"{quantity(self.beside, 'B')} beside them"
        )
        line = f"{quantity(self.taken, 'B')} in all, and {said_free(free)}"
        if self.taken <= free:
            yield line
        else:
            yield f"{line}: too little"
            sizes = self.states + self.weights, self.params, self.beside
            yield advice(trainer, self.layout, *sizes)


def layout_of(trainer: Mapping[str, Any], summary: Summary) -> Layout:
    """Return where a run with this `trainer` would have one trial."""
    mesh = runtime.data_mesh(trainer["devices"], summary.batch_size, strict=False)
    divided = trainer["sharding"] == "fsdp" and mesh.size > 1
    cost = Cost(summary.total("training_flops"), 0)
    if trainer["devices"] is None and not divided and not runtime.worth_sharing(mesh, lambda: cost):
        mesh = runtime.data_mesh(1, summary.batch_size)
    return Layout(mesh, 1, divided=divided)


def as_json(summary: Summary, memory: Memory) -> dict[str, Any]:
    """Return all that is known of a model."""
    sums = {f"total_{name}": summary.total(name) for name in SUMS}
    sizes = {"batch_size": summary.batch_size, "state_bytes": size_of(summary.state)}
    sizes["step_bytes"] = memory.taken
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
        f"{quantity(size_of(summary.state), 'B')}"
    )


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
