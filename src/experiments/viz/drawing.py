"""The one thread that draws and saves the figures of runs: matplotlib is not thread-safe."""

from __future__ import annotations

import functools
import importlib
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.machine import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

FRAME = 250  # milliseconds that a picture of an animation is shown

submit = ThreadPoolExecutor(1, thread_name_prefix="figures").submit
"""Call a function in the thread, after all calls before it, and return its future."""


@functools.cache
def warm_up() -> None:
    """Import what draws, and have it find its fonts, which takes long."""
    submit(lambda: _png(importlib.import_module("experiments.viz.figures").learning_curves([])))


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure as a PNG file, whole or not at all; `options` are those of `savefig`."""
    write_whole(path, _png(figure, **options))


def animate(folder: Path, name: str) -> Path | None:
    """Join `<name>_<step>.png` in `folder` to `<name>.gif`; None if there are no such files."""
    from PIL import Image  # takes a while to import, and few runs have pictures to join

    frames = []
    for path in sorted(folder.glob(f"{name}_[0-9]*.png")):
        try:
            frames.append(Image.open(path).convert("P"))
        except OSError as error:  # damaged, such as by a machine that went down
            log.warning("%s is left out of %s.gif: %s", path, name, error)
    if not frames:
        return None
    first, *rest = frames
    durations = [FRAME] * len(rest) + [8 * FRAME]
    file, path = io.BytesIO(), folder / f"{name}.gif"
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    write_whole(path, file.getvalue())
    return path


def _png(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", **{"dpi": 120, **options})
    return file.getvalue()
