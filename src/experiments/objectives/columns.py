"""Predictions as the columns of a table, with a row per example."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SCALE = {"mean": 0.0, "std": 1.0}  # of a target that is as it was given

Columns = dict[str, Any]


def of_classes(
    probabilities: np.ndarray,
    labels: np.ndarray | None,
    names: Sequence[str],
    top: int | None = None,
) -> Columns:
    """Return `predicted`, before it `label`, and behind it probabilities.

    Args:
        probabilities: [N, classes].
        labels: [N] if they are known.
        names: of the classes.
        top: only so many of the likeliest, `class_<rank>` and `probability_<rank>`; None: of each
            class `p_<class>`.
    """
    every = np.asarray(names)
    columns: Columns = {} if labels is None else {"label": every[labels]}
    columns["predicted"] = every[probabilities.argmax(axis=-1)]
    if top is None:
        return columns | {f"p_{name}": probabilities[:, i] for i, name in enumerate(every)}
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
    for rank in range(top):
        chosen = order[:, rank : rank + 1]
        columns[f"class_{rank + 1}"] = every[chosen[:, 0]]
        columns[f"probability_{rank + 1}"] = np.take_along_axis(probabilities, chosen, 1)[:, 0]
    return columns


def of_numbers(
    outputs: np.ndarray, targets: np.ndarray | None, found: Mapping[str, Any], names: Any
) -> Columns:
    """Return `predicted`, and before it `target`, in the unit of the target.

    Args:
        outputs, targets: [N, ...]; the latter if they are known.
        found: what the data said of the target: its `mean` and `std`, if it is scaled.
        names: of several targets.
    """
    mean, deviation = (np.asarray(found.get(key, default)) for key, default in SCALE.items())
    given = {} if targets is None else {"target": targets}
    columns: Columns = {}
    for column, values in (given | {"predicted": outputs}).items():
        values = np.asarray(values)
        scaled = (values.reshape(len(values), -1) * deviation + mean).astype(np.float32)
        count = scaled.shape[1]
        own = [""] if count == 1 else [f"_{name}" for name in names or range(1, count + 1)]
        columns |= {f"{column}{name}": scaled[:, i] for i, name in enumerate(own)}
    return columns


def of_codes(values: Mapping[str, Any], codes: np.ndarray) -> Columns:
    """Return metrics, each [N], and codes [N, ...] as `code_<number>`."""
    codes = codes.reshape(len(codes), -1)
    return {**values} | {f"code_{i + 1}": codes[:, i] for i in range(codes.shape[1])}


def targets_of(config: Mapping[str, Any]) -> list[str] | None:
    """Return the names of several targets that a config gives to its data."""
    names = config["data"].get("target")
    return names if isinstance(names, list) and len(names) > 1 else None
