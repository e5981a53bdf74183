"""TensorBoard event files in the run folder: `tensorboard --logdir runs`."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.tracking.tracker import RunInfo, Tracker
from experiments.types import Positive


class TensorBoard(Tracker):
    """Scalars, figures and the config, below `<run folder>/tensorboard`.

    Args:
        flush_seconds: seconds between writes to the disk.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self, flush_seconds: Positive):
        if find_spec("tensorboardX") is None:
            raise UserError("logger=tensorboard needs the package: pip install tensorboardx")
        self._flush_seconds = flush_seconds
        self._writer: Any = None

    def start(self, run: RunInfo) -> None:
        from tensorboardX import SummaryWriter

        # events of a resumed run that it will log again are marked as replaced
        replaced = run.start_step + 1 if run.start_step else None
        folder = str(run.directory / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=replaced, flush_secs=self._flush_seconds)
        config = json.dumps(run.config, indent=4, default=str)
        text = "\n".join(f"    {line}" for line in config.splitlines())  # Markdown for code
        self._writer.add_text("config", text, run.start_step or 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def figure(self, step: int, name: str, path: Path) -> None:
        if path.suffix == ".gif":  # TensorBoard shows no moving pictures
            return
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path)), step, dataformats="HWC")

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._writer is not None:
            self._writer.add_text("status", status)
            self._writer.close()
