"""Writes what the weights of a run say about every example: one row an example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.core.config import build
from experiments.errors import UserError
from experiments.tracking.terminal import Terminal
from experiments.training.program import Programs
from experiments.training.restored import saved_weights
from experiments.training.session import open_session

NEEDS_RUN = True


@dataclass(frozen=True)
class Predict:
    """The keys of `predict`.

    Args:
      format: of the table, the file `predictions.<format>` in the folder of the command.
      splits: whose examples it has.
    """

    format: Literal["csv", "parquet"]
    splits: list[Literal["train", "validation", "test"]]


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Writes `predictions.csv` or `.parquet` and says where.

    Its columns are `index` (of the example in its split), `split`, `label`, `predicted` and, for
    each class, the probability `p_<class>`.
    """
    import pyarrow as pa  # takes a while, and only this mode needs it
    from pyarrow import csv, parquet

    wanted: Predict = build(config["predict"])
    terminal = Terminal()
    terminal.status("reading data")
    session = open_session(config)
    weights, _ = saved_weights(session, source)
    programs = Programs(
        session.experiment, session.mesh, batch_size=session.batch_size, max_steps=1
    )
    terminal.status("compiling")
    shapes = session.evaluator("validation").shapes()
    program = programs.compile_eval(weights, shapes, session.hparams)
    numbers = range(session.data.spec.num_classes or 0)
    classes = session.splits.class_names or tuple(map(str, numbers))

    path = directory / f"predictions.{wanted.format}"
    unfinished = path.with_name(path.name + ".tmp")
    fields = [("index", pa.int64()), ("split", pa.string())]
    fields += [("label", pa.string()), ("predicted", pa.string())]
    schema = pa.schema(fields + [(f"p_{name}", pa.float32()) for name in classes])
    writer = {"csv": csv.CSVWriter, "parquet": parquet.ParquetWriter}[wanted.format]
    counts = dict.fromkeys(wanted.splits, 0)
    with writer(unfinished, schema) as table:
        for split in counts:
            for batch in session.evaluator(split).batches():
                _, outputs = program(weights, batch, session.hparams)
                rows = _rows(split, counts[split], batch, np.asarray(outputs), classes)
                table.write_table(pa.table(rows, schema))
                counts[split] += len(rows["index"])
    unfinished.replace(path)
    print(f"{path}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


def _rows(
    split: str, first: int, batch: dict, probabilities: np.ndarray, classes: tuple[str, ...]
) -> dict[str, Any]:
    """The columns of one batch, whose first example is number `first` of its split."""
    if "label" not in batch or probabilities.shape[1:] != (len(classes),):
        raise UserError("mode=predict is for classifiers: this run has no probability a class")
    real = np.asarray(batch["mask"]) > 0
    probabilities, labels = probabilities[real], np.asarray(batch["label"])[real]
    names = np.asarray(classes)
    columns = {
        "index": np.arange(first, first + len(labels)),
        "split": [split] * len(labels),
        "label": names[labels],
        "predicted": names[probabilities.argmax(axis=-1)],
    }
    return columns | {f"p_{name}": probabilities[:, i] for i, name in enumerate(classes)}
