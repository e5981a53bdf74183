"""The figures at the end of a run, in its folder and in the trackers."""

from pathlib import Path

from experiments.tracking.jsonl import METRICS, read_history
from experiments.tracking.tracker import Trackers
from experiments.training.evaluation import Predictions
from experiments.training.session import Session


def draw_figures(
    session: Session, directory: Path, trackers: Trackers, step: int, predictions: Predictions
) -> None:
    """Learning curves, confusion matrix and sample predictions as PNG and to the trackers."""
    import numpy as np

    from experiments.insight import figures  # matplotlib takes a while to import

    classes = session.data.spec.num_classes
    names = session.splits.class_names or tuple(str(i) for i in range(classes))
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (predictions.labels, predictions.predicted), 1)
    shown = len(predictions.probabilities)
    drawn = {
        "learning_curves": figures.learning_curves(read_history(directory / METRICS)),
        "confusion_matrix": figures.confusion_matrix(counts, names),
        "sample_predictions": figures.sample_predictions(
            predictions.images / 255, predictions.labels[:shown], predictions.probabilities, names
        ),
    }
    folder = directory / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        trackers.figure(step, name, figure)
