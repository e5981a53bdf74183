"""Write the predictions of a run's weights as a table with one row per example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.core.config import build
from experiments.errors import UserError
from experiments.machine import whole
from experiments.tracking.terminal import Terminal
from experiments.training.restored import Restored


@dataclass(frozen=True)
class Predict:
    """The keys of `predict`.

    Args:
        format: of the table, the file `predictions.<format>` in the folder of the command.
        splits: the table has a row for each of their examples.
    """

    format: Literal["csv", "parquet"]
    splits: list[Literal["train", "validation", "test"]]


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Write `predictions.csv` or `.parquet` and print where.

    The columns are `index` (of the example in its split), `split`, `label`, `predicted` and, for
    each class, the probability `p_<class>`.
    """
    import pyarrow as pa  # slow to import, and every run checks `Predict` in this module
    from pyarrow import csv, parquet

    wanted: Predict = build(config["predict"])
    terminal = Terminal()
    run = Restored(config, source, terminal)
    terminal.status("compiling")
    numbers = range(run.setup.source.spec.num_classes or 0)
    classes = run.setup.splits.class_names or tuple(map(str, numbers))

    path = directory / f"predictions.{wanted.format}"
    fields = [("index", pa.int64()), ("split", pa.string())]
    fields += [("label", pa.string()), ("predicted", pa.string())]
    schema = pa.schema(fields + [(f"p_{name}", pa.float32()) for name in classes])
    writer = {"csv": csv.CSVWriter, "parquet": parquet.ParquetWriter}[wanted.format]
    counts = dict.fromkeys(wanted.splits, 0)
    with whole(path) as new, writer(new, schema) as table:
        for split in counts:
            for batch, outputs in run.outputs(split):
                rows = _rows(split, counts[split], batch, np.asarray(outputs), classes)
                table.write_table(pa.table(rows, schema))
                counts[split] += len(rows["index"])
    print(f"{path}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


def _rows(
    split: str, first: int, batch: dict, probabilities: np.ndarray, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the columns of one batch; its first example has the index `first` in its split."""
    if "label" not in batch or probabilities.shape[1:] != (len(classes),):
        raise UserError("mode=predict is for classifiers: this run gives no probability per class")
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
