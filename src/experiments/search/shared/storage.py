"""The storage of a study: a journal in its folder, or a database.

The URL of a database may hold a password, which is masked wherever it is printed or written, in
`study.yaml` too. Who opens the study reads it from the environment or from a file of its own.
"""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from experiments.errors import MASK, UserError, masked

ADDRESS = "EXPERIMENTS_STORAGE"  # in the environment: the URL with its password
ADDRESS_FILE = "storage.url"  # in the folder of the study: the same, for its owner alone


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

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        line = log_number_from + 1  # every entry is one
        try:
            for entry in super().read_logs(log_number_from):
                if not (isinstance(entry, dict) and {"op_code", "worker_id"} <= entry.keys()):
                    raise ValueError("no entry")
                yield entry
                line += 1
        except ValueError as error:
            raise UserError(
                f"{self.path}:{line}: this line is damaged\n"
                f"restore the file from a copy, or remove the line and with it what it recorded"
            ) from error

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
        UserError: the database cannot be reached, or its password is not known.
    """
    storage = address(folder, storage)
    if "://" not in storage:
        journal = Journal(folder / storage)
        return JournalStorage(journal), journal.at_once
    if storage.partition("?")[0].count("@") > 1:  # drivers would print the rest as a host
        raise UserError(f"storage={storage}: write @ as %40 and / as %2F in a password")
    try:  # with a cache, which all of Optuna's studies in this process are to share
        return get_storage(storage), contextlib.nullcontext
    except Exception as error:
        if isinstance(error.__cause__, ModuleNotFoundError):  # the driver of the database
            error = error.__cause__
        first = str(error).strip().splitlines()[0]
        raise UserError(f"storage={storage}: cannot be opened: {first}") from error


def keep_address(folder: Path, storage: str) -> str:
    """Return a storage as it may be written; a password that is left out of it is kept apart.

    It goes into a file that only its owner may read, unless the environment holds it.
    """
    if masked(storage) != storage and os.environ.get(ADDRESS) != storage:
        path = folder / ADDRESS_FILE
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{storage}\n")
    return masked(storage)


def address(folder: Path, storage: str) -> str:
    """Return a storage as it is opened: with the password that `study.yaml` leaves out.

    Raises:
        UserError: neither the environment nor a file that others cannot read has it.
    """
    if MASK not in storage:
        return storage
    if masked(found := os.environ.get(ADDRESS, "")) == storage:
        return found
    path = folder / ADDRESS_FILE
    wanted = f"storage={storage}: say the URL with its password in {ADDRESS}, or in {path}"
    try:
        found, mode = path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{wanted}, a file of mode 0600") from error
    if mode & 0o077:
        raise UserError(f"{path} can be read by others; chmod 600 {path}")
    if masked(found) != storage:
        raise UserError(f"{wanted}, which is of another storage")
    return found
