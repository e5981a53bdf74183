"""One process a run folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the run in `folder`; the lock goes with the process, however that ends.

    Raises:
        UserError: another process trains in `folder`.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in {folder}") from error
        yield
