"""TensorBoard event files in the run folder: `tensorboard --logdir runs`."""

import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiments.errors import UserError
from experiments.tracking.tracker import RunInfo, Tracker


class TensorBoard(Tracker):
    """Scalars, figures and the config, below `<run folder>/tensorboard`.

    Each event is written at once: a run that is killed loses none, and an error of the disk is
    raised where it happens. (In tensorboardX's own writer it ends a thread, for which all later
    calls wait for ever.)

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboardX") is None:
            raise UserError("logger=tensorboard needs the package: pip install tensorboardx")
        self._file: BinaryIO | None = None

    def start(self, run: RunInfo) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import SessionLog

        folder = run.directory / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=0)
        self._write(0, file_version="brain.Event:2")
        if run.start_step:  # events that it will log again are marked as replaced
            self._write(run.start_step + 1, session_log=SessionLog(status=SessionLog.START))
        config = json.dumps(run.config, indent=4, default=str)
        text = "\n".join(f"    {line}" for line in config.splitlines())  # Markdown for code
        self._write(run.start_step or 0, summary=summary.text("config", text))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=v) for name, v in scalars.items()]
        self._write(step, summary=Summary(value=values))

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        from tensorboardX.summary import histogram_raw

        middles = (edges[1:] + edges[:-1]) / 2
        moments = counts.sum(), counts @ middles, counts @ middles**2
        limits = edges[1:].tolist(), counts.tolist()
        self._write(step, summary=histogram_raw(name, edges[0], edges[-1], *moments, *limits))

    def figure(self, step: int, name: str, path: Path) -> None:
        if path.suffix == ".gif":  # TensorBoard shows no moving pictures
            return
        from PIL import Image
        from tensorboardX import summary

        picture = np.asarray(Image.open(path))
        self._write(step, summary=summary.image(name, picture, dataformats="HWC"))

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._file is not None:
            from tensorboardX.summary import text

            self._write(0, summary=text("status", status))
            self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        """Append an event: its length and its bytes, each with a checksum behind it."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        assert self._file, "log() before start()"
        data = Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (part + struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(b"".join(parts))
