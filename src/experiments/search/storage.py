"""The storage of a study: a journal in its folder, or a database."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from experiments.errors import UserError


class Journal(JournalFileBackend):
    """Optuna's journal, where a writer may be killed in the middle of a line.

    Optuna reads nothing behind a torn line, so the next writer removes it.
    """

    def __init__(self, path: Path):
        self.path, self.lock = path, JournalFileSymlinkLock(str(path))
        self.open_file: BinaryIO | None = None  # while this process has the lock
        super().__init__(str(path), self.lock)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[BinaryIO]:
        """Write all entries of the block under one lock, and wait for the disk once, at its end."""
        if self.open_file is not None:
            yield self.open_file
            return
        self.lock.acquire()
        try:
            self._remove_torn_line()
            with self.path.open("ab") as self.open_file:
                yield self.open_file
                self.open_file.flush()
                os.fsync(self.open_file.fileno())
        finally:
            self.open_file = None
            # Optuna breaks a lock that was held for long, as by a process that slept
            with contextlib.suppress(RuntimeError):
                self.lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs]
        with self.at_once() as file:
            file.write("".join(lines).encode())
            file.flush()  # Optuna reads it back

    def _remove_torn_line(self) -> None:
        with self.path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def open_storage(
    folder: Path, storage: str
) -> tuple[BaseStorage, Callable[[], AbstractContextManager]]:
    """Open the storage of the study in `folder`: the URL of a database, or a file in the folder.

    Returns:
        The storage, and a context within which it writes all changes as one, if it can.

    Raises:
        UserError: the database cannot be reached.
    """
    if "://" not in storage:
        journal = Journal(folder / storage)
        return JournalStorage(journal), journal.at_once
    try:  # with a cache, which all of Optuna's studies in this process are to share
        return get_storage(storage), contextlib.nullcontext
    except Exception as error:
        if isinstance(error.__cause__, ModuleNotFoundError):  # the driver of the database
            error = error.__cause__
        first = str(error).strip().splitlines()[0]
        raise UserError(f"storage={storage}: cannot be opened: {first}") from error
