"""The callbacks that come with the project, in `conf/callbacks/`."""

import csv
import io

import numpy as np

from experiments.core.callback import Callback, RunInfo, ValidationPredictions
from experiments.machine import write_whole
from experiments.types import PositiveInt


class Mistakes(Callback):
    """Writes `mistakes.csv`: validation examples whose label the model finds least likely.

    They are those of the newest epoch, the worst first: hard examples, and wrong labels. The
    columns are `index` (of the example in the split), `label`, `predicted` and `probability`, that
    of the label.

    Args:
        most: number of examples.
    """

    def __init__(self, most: PositiveInt):
        self.most = most

    def start(self, run: RunInfo) -> None:
        self._run = run

    def on_epoch_end(
        self,
        step: int,
        weights: dict[str, np.ndarray],
        metrics: dict[str, float],
        predictions: ValidationPredictions,
    ) -> None:
        probabilities, labels = predictions.outputs, predictions.examples.get("label")
        if labels is None or labels.ndim != 1 or np.ndim(probabilities) != 2:
            raise ValueError("this run gives no probability per class")
        predicted = probabilities.argmax(axis=1)
        of_label = probabilities[np.arange(len(labels)), labels]
        wrong = np.flatnonzero(predicted != labels)
        worst = wrong[of_label[wrong].argsort(kind="stable")][: self.most]
        names = np.array(self._run.class_names or range(probabilities.shape[1]))
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["index", "label", "predicted", "probability"])
        columns = worst, names[labels[worst]], names[predicted[worst]], of_label[worst]
        table.writerows(zip(*(column.tolist() for column in columns), strict=True))
        write_whole(self._run.directory / "mistakes.csv", text.getvalue())
