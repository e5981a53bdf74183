"""Reads back the `.wandb` file of a run: a LevelDB log of protobuf records (client 0.31)."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")  # crc, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The history as `metrics.jsonl` has it: `step`, and none of the client's own keys."""
        return [
            {"step": row["_step"], **{k: v for k, v in row.items() if not k.startswith("_")}}
            for row in self.history
        ]


def find(directory: Path) -> list[Path]:
    """The `.wandb` files below a run folder, oldest first."""
    return sorted(directory.glob("wandb/*run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime_ns)


def read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in _records(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.name = record.run.run_id, record.run.display_name
                run.project, run.group = record.run.project, record.run.run_group
                run.tags = list(record.run.tags)
                run.config |= _values(record.run.config.update)
            case "config":
                run.config |= _values(record.config.update)
            case "history":
                row = _values(record.history.item)
                run.history.append({**row, "_step": record.history.step.num})
            case "summary":
                run.summary |= _values(record.summary.update)
            case "files":
                run.files += [file.path for file in record.files.files]
            case "artifact":
                run.artifacts += [entry.path for entry in record.artifact.manifest.contents]
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _records(log: bytes) -> Iterator[Any]:
    from wandb.proto import (
        wandb_internal_pb2 as pb,  # takes a second to import, in each process that runs tests
    )

    magic = struct.unpack_from("<4sHB", log)
    assert magic == (b":W&B", 0xBEE1, 0), magic
    position, parts = 7, b""
    while position + HEADER.size <= len(log):
        room = BLOCK - position % BLOCK
        if room < HEADER.size:  # too small for a header: padding
            position += room
            continue
        crc, length, kind = HEADER.unpack_from(log, position)
        position += HEADER.size
        data = log[position : position + length]
        if len(data) < length:  # the writer was killed
            return
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == crc, f"bad record at {position}"
        position += length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield pb.Record.FromString(parts)


def _values(items: Any) -> dict[str, Any]:
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
