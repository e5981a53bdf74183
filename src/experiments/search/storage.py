"""Where Optuna keeps a study: a journal in its folder, or a database."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from experiments.errors import UserError

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Journal(JournalFileBackend):
    """Optuna's journal, which also outlives a writer that was killed in the middle of a line.

    Optuna refuses to read on behind a torn line, so the next writer removes it.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._file: BinaryIO | None = None  # while this process has the lock

    @contextlib.contextmanager
    def at_once(self) -> Iterator[BinaryIO]:
        """Within it one lock, and one wait for the disk at the end, are for all entries."""
        if self._file is not None:
            yield self._file
            return
        self._lock.acquire()
        try:
            self._remove_torn_line()
            with open(self._file_path, "ab") as self._file:
                yield self._file
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file = None
            # one that was held for long (a process that slept) may have been taken for abandoned
            with contextlib.suppress(RuntimeError):
                self._lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs]
        with self.at_once() as file:
            file.write("".join(lines).encode())
            file.flush()  # Optuna reads it back

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


def at_once(storage: BaseStorage) -> AbstractContextManager[Any]:
    """Within it a journal takes all changes as one; a database is left to itself."""
    if isinstance(storage, JournalStorage) and isinstance(storage._backend, Journal):
        return storage._backend.at_once()
    return contextlib.nullcontext()
