"""Predictions in W&B: a table, and of a classifier W&B's own charts of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

PROBABILITY = "p_"  # begins the name of the column of a class
ROWS = 10_000  # most in a table or a chart, by W&B's own limit
WIDE = 50  # most classes whose probabilities a table shows, and that charts compare
RECALLS = 21  # points of a curve


def media_of(name: str, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a table of predictions, and if they are of classes a confusion matrix and PR curves.

    Args:
        name: of the table; those of the charts begin with it.
        columns: N rows each. Of a classifier `label` and `predicted`, and of each class the
            probability, `p_<class>`.
    """
    import wandb

    columns = {key: np.asarray(column)[:ROWS] for key, column in columns.items()}
    scores = {k.removeprefix(PROBABILITY): v for k, v in columns.items() if k.startswith("p_")}
    shown = {k: v for k, v in columns.items() if len(scores) <= WIDE or not k.startswith("p_")}
    rows = [list(row) for row in zip(*(v.tolist() for v in shown.values()), strict=True)]
    media: dict[str, Any] = {name: wandb.Table(columns=list(shown), data=rows)}
    if "label" in columns and 1 < len(scores) <= WIDE:
        classes = list(scores)
        numbers = {one: number for number, one in enumerate(classes)}
        true, predicted = ([numbers[one] for one in columns[k]] for k in ("label", "predicted"))
        media[f"{name}_confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=true, preds=predicted, class_names=classes, title="Confusion matrix"
        )
        media[f"{name}_pr_curve"] = wandb.plot.plot_table(
            "wandb/area-under-curve/v0",  # as `wandb.plot.pr_curve`, which needs scikit-learn
            wandb.Table(columns=["class", "precision", "recall"], data=_curves(columns, scores)),
            {"x": "recall", "y": "precision", "class": "class"},
            {
                "title": "Precision and recall",
                "x-axis-title": "Recall",
                "y-axis-title": "Precision",
            },
        )
    return media


def _curves(columns: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> list[list]:
    """Return rows (class, precision, recall): of each recall the best precision that reaches it."""
    rows = []
    for one, score in scores.items():
        hits = (columns["label"] == one)[np.argsort(-score, kind="stable")]
        if not hits.any():
            continue
        found = np.cumsum(hits)
        precision, recall = found / np.arange(1, len(hits) + 1), found / found[-1]
        best = np.maximum.accumulate(precision[::-1])[::-1]
        for wanted in np.linspace(0, 1, RECALLS):
            reached = min(np.searchsorted(recall, wanted), len(best) - 1)
            rows.append([one, round(float(best[reached]), 4), round(float(wanted), 4)])
    return rows
