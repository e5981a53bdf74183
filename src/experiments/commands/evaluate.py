"""Evaluate the weights of a run on its validation and test splits."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from experiments.core.params import count_parameters
from experiments.tracking.jsonl import write_json
from experiments.tracking.terminal import Terminal, number, print_classes
from experiments.training.evaluation import Split
from experiments.training.metrics import prefixed
from experiments.training.restored import Restored
from experiments.training.run_folder import CHECKPOINTS, COMMAND, EVALUATIONS

# keys of the command, and of where it works, which say nothing of what is evaluated
SAME = rf"({'|'.join(COMMAND)}|trainer\.\w+|logger(\.\w+)?|data\.(dir|cache_dir|workers))="
LONGEST = 100  # characters of a name


def main(config: dict[str, Any], directory: Path | None, source: Path | None) -> None:
    """Print `val/*` and `test/*`; write them to `evaluations/<name>.json`, if a folder is said.

    The name is what the command changes about the run: `best,eval.tta=flip`; `name=` says another.
    """
    run = Restored(config, source, Terminal())
    summary: dict[str, Any] = {"best": run.progress.get("best")}
    splits: dict[Split, str] = {"validation": "val", "test": "test"}
    units, note = run.setup.value_units, run.setup.splits.test_note
    for split, prefix in splits.items():
        measured, _ = run.predict(split)
        values = prefixed(prefix, measured.line)
        print("   ".join(_said(name, value, units) for name, value in values.items()))
        summary |= values | measured.classes(run.setup.splits.class_names)
    if note:
        print(note)
    summary |= {
        "parameters": count_parameters(run.weights[0]),
        "checkpoint": str(source or config["model"]["pretrained"]),
    }
    print_classes(summary)
    if directory is not None:
        path = directory / EVALUATIONS / f"{name_of(source)}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, summary)
        print(f"written to {path}")


def _said(name: str, value: float, units: Mapping[str, str]) -> str:
    """Return `val/loss 0.2500 bits`."""
    unit = units.get(name.partition("/")[2], "")
    return f"{name} {number(value)} {unit}".rstrip()


def name_of(source: Path | None) -> str:
    """Return the name of an evaluation, as a file may have it: weights, and what was changed."""
    said = [argument.lstrip("+") for argument in HydraConfig.get().overrides.task]
    parts = [argument.partition("=")[2] for argument in said if argument.startswith("name=")]
    if not parts:
        weights = "pretrained" if source is None else "best"
        if source is None:  # whose model is part of them
            said = [argument for argument in said if not re.match(r"model[.=]", argument)]
        if source is not None and source.absolute().parent.name == CHECKPOINTS:
            weights = source.name
        parts = [weights, *(a for a in said if not re.match(SAME, a))]
    return re.sub(r"[^\w.=,-]+", "_", ",".join(parts))[:LONGEST]
