"""Evaluate the weights of a run on its validation and test splits."""

from pathlib import Path
from typing import Any

from experiments.core.params import count_parameters
from experiments.tracking.jsonl import SUMMARY, write_json
from experiments.tracking.terminal import Terminal, number, print_classes
from experiments.training.evaluation import Split
from experiments.training.metrics import prefixed
from experiments.training.restored import Restored
from experiments.training.run_folder import EVALUATION, is_run


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Print `val/*` and `test/*`; write them to `summary.json`, in a run to `evaluation.json`."""
    run = Restored(config, source, Terminal())
    summary: dict[str, Any] = {"best": run.progress["best"]}
    splits: dict[Split, str] = {"validation": "val", "test": "test"}
    for split, prefix in splits.items():
        measured, _ = run.predict(split)
        values = prefixed(prefix, measured.line)
        print("   ".join(f"{name} {number(value)}" for name, value in values.items()))
        summary |= values | measured.classes(run.setup.splits.class_names)
    summary |= {"parameters": count_parameters(run.weights[0]), "checkpoint": str(source)}
    print_classes(summary)
    path = directory / (EVALUATION if is_run(directory) else SUMMARY)
    write_json(path, summary)
    print(f"written to {path}")
