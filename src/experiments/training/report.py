"""The figures of a run, in its folder and in the trackers."""

import importlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.core.experiment import Tree
from experiments.tracking.tracker import Tracker
from experiments.training.evaluation import Predictions
from experiments.training.helper import helper
from experiments.training.session import Session
from experiments.viz import drawing
from experiments.viz.animation import animate
from experiments.viz.gallery import DRAWN_DURING_TRAINING, MODULES

# pictures that are being drawn, by name: what, into which file, and when it is there
Started = dict[str, tuple[drawing.Drawing, Path, Future]]
DURING = 25  # most epochs of a run after which figures are drawn


class Album:
    """Draws a run's figures, those of an epoch while the next one trains."""

    def __init__(self, session: Session, directory: Path, trackers: Tracker):
        self.session, self.directory, self.trackers = session, directory, trackers
        self.every = max(session.trainer.epochs // DURING, 1)
        self.objective = session.experiment.objective(session.hparams)
        self._gallery: Any = None
        self._making = threading.Lock()
        self._drawing: Future[tuple[Started, dict[str, float]]] | None = None
        self._thread = ThreadPoolExecutor(1)

    @property
    def gallery(self) -> Any:
        """What the objective has to show."""
        with self._making:
            if self._gallery is None:
                module = importlib.import_module(MODULES[self.objective.kind])
                self._gallery = module.Gallery(self.session, self.directory)
            return self._gallery

    def prepare(self) -> None:
        """Imports what draws, beside what there is still to compute."""
        helper().submit("drawing", drawing.warm_up)
        self._thread.submit(lambda: self.gallery)

    def wants(self, epoch: int) -> bool:
        """Whether there is anything to draw after an epoch; the first is 1."""
        return epoch % self.every == 0 and self.objective.kind in DRAWN_DURING_TRAINING

    def after_epoch(self, step: int, weights: tuple[Tree, Tree]) -> None:
        """Starts drawing; `weights` must stay as they are."""
        self.finish_drawing(step)
        self._drawing = self._thread.submit(self._during, weights, step)

    def finish_drawing(self, now: int) -> None:
        """Hands over what is being drawn, under the step `now`: steps of trackers never fall."""
        if self._drawing is not None:
            under_way, self._drawing = self._drawing, None
            started, measured = under_way.result()
            self._hand_over(now, started)
            if measured:
                self.trackers.log(now, {f"val/{name}": v for name, v in measured.items()})

    def end(
        self, step: int, weights: tuple[Tree, Tree], predictions: Predictions
    ) -> dict[str, float]:
        """Draws what is to be seen of the best weights; returns `test/*` of the gallery."""
        self.finish_drawing(step)
        started = self._begin(self.gallery.final(weights, predictions), "")
        measured = self.gallery.measure(weights, "test")
        self._hand_over(step, started)
        for name in self.gallery.animated:
            if (path := animate(self.directory / "figures", name)) is not None:
                self.trackers.animation(step, name, path)
        return {f"test/{name}": value for name, value in measured.items()}

    def _during(self, weights: tuple[Tree, Tree], step: int) -> tuple[Started, dict[str, float]]:
        started = self._begin(self.gallery.during(weights), f"_{step:08d}")
        return started, self.gallery.measure(weights, "validation")

    def _begin(self, drawings: dict[str, drawing.Drawing], suffix: str) -> Started:
        """Has these drawn; the names of their files end with the suffix."""
        folder = self.directory / "figures"
        folder.mkdir(exist_ok=True)
        begun = {}
        for name, what in drawings.items():
            path = folder / f"{name}{suffix}.png"
            begun[name] = (what, path, helper().submit("drawing", drawing.save, what, path))
        return begun

    def _hand_over(self, step: int, started: Started) -> None:
        """Gives the trackers what is being drawn, once it is."""
        for name, (what, path, drawn) in started.items():
            try:
                drawn.result()
            except ChildProcessError:  # short of memory, the machine may have killed it
                drawing.save(what, path)
            self.trackers.figure(step, name, path)
