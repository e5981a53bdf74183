"""Pictures that are still to be drawn, in the process beside the run: see `training.helper`.

`figures.learning_curves(history)` is here no figure, but the call that gives one.
"""

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Drawing(NamedTuple):
    """A call of a function that returns a matplotlib figure."""

    module: str
    function: str
    arguments: tuple
    named: dict[str, Any]

    def draw(self) -> Any:
        """The figure."""
        function = getattr(importlib.import_module(self.module), self.function)
        return function(*self.arguments, **self.named)


class Drawings:
    """Stands for a module of such functions, which is imported where they are called."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, function: str) -> Callable[..., Drawing]:
        def later(*arguments: Any, **named: Any) -> Drawing:
            return Drawing(self._module, function, arguments, named)

        return later


figures = Drawings("experiments.viz.figures")
image_figures = Drawings("experiments.viz.image_figures")
sequence_figures = Drawings("experiments.viz.sequence_figures")


def save(drawing: Drawing, path: Path) -> None:
    """Draws a picture into a PNG file."""
    drawing.draw().savefig(path, dpi=120)


def warm_up() -> None:
    """Imports what draws, and has it find its fonts."""
    figures.learning_curves([]).draw().savefig(io.BytesIO())
