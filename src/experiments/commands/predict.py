"""Write what a run's weights predict as a table, with one row per example.

The examples are those of the run's own splits, or those in the files that `input=` names.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.core.config import build
from experiments.data.dataset import model_input
from experiments.errors import UserError
from experiments.machine import whole
from experiments.objectives import columns
from experiments.objectives.columns import Columns
from experiments.tracking.terminal import Terminal
from experiments.tracking.wandb import STATE
from experiments.training.evaluation import ROWS
from experiments.training.restored import Restored, in_wandb
from experiments.training.run_folder import exclusive, split_source
from experiments.types import PositiveInt

log = logging.getLogger(__name__)

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Predict:
    """The keys of `predict`.

    Args:
        format: of the table, the file `predictions.<format>` in the folder of the command.
        splits: without `input`, the table has a row for each of their examples.
        top_k: only so many classes with the highest probabilities, in columns of their own; None
            gives the probability of each class.
    """

    format: Literal["csv", "parquet"]
    splits: list[Literal["train", "validation", "test"]]
    top_k: PositiveInt | None = None


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Write `predictions.csv` or `.parquet` and print where.

    The first columns say which example it is: `split` and `index` in it, or `file` and, of a table
    or an array, `index`. Then come of a classifier `label` (of splits), `predicted` and
    probabilities `p_<class>` or `class_<rank>` and `probability_<rank>`; of a regression `target`
    (of splits) and `predicted`, in the unit of the target; of an autoencoder its metrics, such as
    `squared_error`, and `code_<number>`.
    """
    import pyarrow as pa  # slow to import, and every run checks `Predict` in this module
    from pyarrow import csv, parquet

    wanted: Predict = build(config["predict"])
    terminal = Terminal()
    parts: Iterator[Part]
    if config["input"] is None:
        run = Restored(config, source, terminal)
        parts = (part for split in dict.fromkeys(wanted.splits) for part in _of_split(run, split))
    else:
        from experiments.data.reading.unseen import splits_of, unseen

        data = build(config["data"])
        read = unseen(data, config["input"], log.warning)
        run = Restored(config, source, terminal, splits_of(data))
        parts = _of_files(run, read)
    columns_of = _predictions(run, wanted, known=config["input"] is None)
    terminal.status("predicting")

    path = directory / f"predictions.{wanted.format}"
    write = {"csv": csv.CSVWriter, "parquet": parquet.ParquetWriter}[wanted.format]
    counts: dict[str, int] = {}
    pieces: dict[str, list[Any]] = {}
    with whole(path) as new_file, contextlib.ExitStack() as stack:
        table = None
        for part, rows, batch in parts:
            piece = pa.table(rows | columns_of(batch))
            table = table or stack.enter_context(write(new_file, piece.schema))
            table.write_table(piece)
            if counts.setdefault(part, 0) < ROWS:
                pieces.setdefault(part, []).append(piece)
            counts[part] += len(piece)
        if table is None:
            raise UserError(f"input={config['input']} has no examples")
    print(f"{path}: " + ", ".join(f"{count} {part}" for part, count in counts.items()))
    tables = {part: pa.concat_tables(found).slice(0, ROWS) for part, found in pieces.items()}
    if source is not None:
        _add_to_wandb(run, split_source(source)[0], tables)


def _add_to_wandb(run: Restored, folder: Path, tables: Mapping[str, Any]) -> None:
    """Add predictions to the run in W&B, if it is there and not just being trained."""
    if not (folder / STATE).is_file():
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder))
        except UserError as error:
            log.warning("the predictions are not in W&B: %s", error)
            return
        wandb, step = stack.enter_context(in_wandb(run, folder))
        for part, table in tables.items():
            shown = {name: table[name].to_numpy() for name in table.column_names}
            wandb.predictions(step, f"predictions/{part}", shown)


Part = tuple[str, Columns, Batch]


def _of_split(run: Restored, split: Any) -> Iterator[Part]:
    """Yield of each batch of a split what says which examples these are, and itself."""
    first = 0
    for batch in run.batches(split):
        count = int((np.asarray(batch["mask"]) > 0).sum())
        rows = {"index": np.arange(first, first + count), "split": [split] * count}
        yield split, rows, batch
        first += count


def _of_files(run: Restored, read: Callable) -> Iterator[Part]:
    """Yield the same of batches of new inputs, padded to the size of an evaluation's."""
    shapes, size = run.setup.evaluation_shapes, run.setup.eval_batch_size
    name, _ = model_input(shapes)
    for rows, inputs in read(size):
        repeat = np.arange(size) % len(inputs)
        batch = {key: np.zeros(one.shape, one.dtype) for key, one in shapes.items()}
        batch[name] = inputs[repeat].astype(shapes[name].dtype, copy=False)
        batch["mask"] = (np.arange(size) < len(inputs)).astype(np.float32)
        yield "examples", rows, batch


def _predictions(run: Restored, wanted: Predict, *, known: bool) -> Callable[[Batch], Columns]:
    """Return what makes the columns of a batch's predictions, for the kind of the run's objective.

    Args:
        known: the labels and targets of a batch are those of its examples.

    Raises:
        UserError: such predictions have no place in a table.
    """
    kind, shapes = run.setup.objective.kind, run.setup.evaluation_shapes

    def given(batch: Batch, name: str) -> np.ndarray | None:
        return np.asarray(batch[name])[_real(batch)] if known else None

    def outputs(batch: Batch) -> np.ndarray:
        return np.asarray(run.outputs(batch))[_real(batch)]

    if wanted.top_k is not None and kind != "classification":
        raise UserError(f"predict.top_k={wanted.top_k} is for classifiers")
    if kind == "classification":
        numbers = range(run.setup.source.spec.num_classes)
        names = run.setup.splits.class_names or tuple(map(str, numbers))
        if (top := wanted.top_k) is not None and top > len(names):
            raise UserError(f"predict.top_k={top}: there are {len(names)} classes")
        return lambda batch: columns.of_classes(outputs(batch), given(batch, "label"), names, top)
    if kind == "regression":
        found = (run.setup.splits.found or {}).get("target", {})
        if "unit" in shapes and not found:
            raise UserError(
                "mode=predict gives numbers in the unit of the target, which these data do not keep"
            )
        targets = columns.targets_of(run.config)
        return lambda batch: columns.of_numbers(
            outputs(batch), given(batch, "target"), found, targets
        )
    if not hasattr(run.setup.objective, "codes"):
        raise UserError(f"mode=predict is for classes, numbers and codes, not for {kind} models")
    if not known and run.config["model"].get("conditional"):
        given_path = run.config["input"]
        raise UserError(f"input={given_path}: this model reads the class of each picture, too")

    def codes(batch: Batch) -> Columns:
        real, (values, found) = _real(batch), run.examined(batch)
        return columns.of_codes(
            {n: np.asarray(v)[real] for n, v in values.items()}, np.asarray(found)[real]
        )

    return codes


def _real(batch: Batch) -> np.ndarray:
    return np.asarray(batch["mask"]) > 0
