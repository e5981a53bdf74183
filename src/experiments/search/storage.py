"""Where Optuna keeps a study: a journal in its folder, or a database."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from experiments.errors import UserError

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Journal(JournalFileBackend):
    """Optuna's journal, which also outlives a writer that was killed in the middle of a line.

    Optuna refuses to read on behind a torn line, so the next writer removes it.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs]
        self._lock.acquire()
        try:
            self._remove_torn_line()
            with open(self._file_path, "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        finally:
            # one that was held for long (a process that slept) may have been taken for abandoned
            with contextlib.suppress(RuntimeError):
                self._lock.release()

    def _remove_torn_line(self) -> None:
        with open(self._file_path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            size = end
            while size:
                start = max(0, size - 4096)
                file.seek(start)
                newline = file.read(size - start).rfind(b"\n")
                if newline >= 0:
                    size = start + newline + 1
                    break
                size = start
            if size < end:
                file.truncate(size)


def open_storage(folder: Path, storage: str) -> BaseStorage:
    """The storage of the study in `folder`: the URL of a database, or a file in the folder.

    Raises:
        UserError: the database cannot be reached.
    """
    if "://" not in storage:
        return JournalStorage(Journal(str(folder / storage)))
    try:
        return RDBStorage(storage)
    except Exception as error:
        if isinstance(error.__cause__, ModuleNotFoundError):  # the driver of the database
            error = error.__cause__
        first = str(error).strip().splitlines()[0]
        raise UserError(f"storage={storage}: cannot be opened: {first}") from error
