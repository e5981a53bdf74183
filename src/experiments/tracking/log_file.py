"""The log of a run as a file."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.errors import masked

LOG = "run.log"
FORMAT = "[%(asctime)s] %(levelname)s %(name)s: %(message)s"
TRACEBACK = "traceback_for_files"  # of a record: text that a terminal does without


class LogFile(logging.FileHandler):
    """A file of log records that ends nothing when it cannot be opened or written.

    That is said once, on standard error.
    """

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, as far as that can be done."""
        try:
            super().emit(record)  # opens the file if need be
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say why a record could not be written."""
        if not self._failed:
            self._failed = True
            sys.stderr.write(f"{self.baseFilename} cannot be written: {sys.exception()}\n")

    def close(self) -> None:
        """Close the file; what it could not take is lost."""
        with contextlib.suppress(OSError):
            super().close()


class Formatter(logging.Formatter):
    """Formats log records for a file: with tracebacks, and without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        behind = None if record.exc_info else getattr(record, TRACEBACK, None)
        return masked("\n".join(filter(None, [super().format(record), behind])))


class LogStream(logging.Handler):
    """Hands log records on, as the lines of text that `run.log` has, until it is closed.

    Args:
        write: takes a line.
        client: the name of the loggers of what it writes to, which is left out.
    """

    def __init__(self, write: Callable[[str], None], client: str):
        super().__init__()
        self.write, self.client = write, client
        self.setFormatter(Formatter(FORMAT))
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on; an error of what takes it is none of the program's."""
        if record.name.partition(".")[0] != self.client:
            with contextlib.suppress(Exception):
                self.write(self.format(record))

    def close(self) -> None:
        """Hand on no more."""
        logging.root.removeHandler(self)
        super().close()


@contextlib.contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Log into `run.log` of a run folder too, which is made with the first message."""
    handler = LogFile(folder / LOG, delay=True, encoding="utf-8")
    handler.setFormatter(Formatter(FORMAT))
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        handler.close()
