"""The files that W&B's client keeps in a run folder: what each sitting recorded, and its own log.

The only place that knows their formats (client 0.31). `<kind>run-<time>-<id>/run-<id>.wandb` is a
LevelDB log, blocks of pieces of records, each a protobuf message; `logs/debug-internal.log` has a
line of JSON for each event.
"""

import json
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

MAGIC = 7  # bytes before the first record
BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")  # checksum, length and kind of a piece of a record
FULL, FIRST, LAST = 1, 2, 4
UPLOADERS = ("filestream:", "runupserter:", "runfiles:")  # parts of the client that give up


def mend_offline_runs(folder: Path) -> int:
    """Return the last step in what the offline sittings below `folder` recorded, or -1.

    Their process may have been killed, and `wandb sync` takes no run behind a file that ends within
    a record: what follows the last whole record, or a damaged one, is cut off, and a sitting that
    recorded nothing is removed.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    last = -1
    for sitting in folder.glob("offline-run-*"):
        begun = False
        for path in sitting.glob("*.wandb"):
            log, end = path.read_bytes(), 0
            for content, position in _records(log):
                end, record = position, Record.FromString(content)
                begun = begun or record.HasField("run")
                last = max(last, record.history.step.num) if record.HasField("history") else last
            if end < len(log):
                os.truncate(path, end)
        if not begun:
            shutil.rmtree(sitting, ignore_errors=True)
    return last


def last_id(folder: Path) -> str | None:
    """Return the id of the run that the newest sitting below `folder` recorded, if there is one."""
    named = (
        re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(.+)", path.name) for path in folder.glob("*")
    )
    return max((match.groups() for match in named if match), default=(None, None))[1]


def wait_for_a_new_folder(folder: Path) -> None:
    """Wait until no sitting below `folder` began in this second, after which its folder is named.

    The client would write over what that one recorded.
    """
    while any(folder.glob(f"*run-{datetime.now():%Y%m%d_%H%M%S}-*")):
        time.sleep(0.05)


class ClientLog:
    """The log of the client, read as it grows."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0

    def refusal(self) -> str | None:
        """Return the first error since the last call after which something is not uploaded."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                lines = file.read().splitlines(keepends=True)
        except OSError:
            return None
        whole = [line for line in lines if line.endswith(b"\n")]
        self.position += sum(map(len, whole))
        for event in map(json.loads, whole):
            message = event.get("msg", "")
            if event.get("level", "").startswith("ERROR") and message.startswith(UPLOADERS):
                return " ".join(f"{message}: {event.get('error', '')}".strip(": ").split())
        return None


def _records(log: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record of a file with the position of its end."""
    position, record = MAGIC, b""
    while position + HEADER.size <= len(log):
        if (room := BLOCK - position % BLOCK) < HEADER.size:  # padding
            position += room
            continue
        checksum, length, kind = HEADER.unpack_from(log, position)
        position += HEADER.size + length
        if not FULL <= kind <= LAST or position > len(log):
            return
        piece = log[position - length : position]
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            return
        record = piece if kind in (FULL, FIRST) else record + piece
        if kind in (FULL, LAST):
            yield record, position
