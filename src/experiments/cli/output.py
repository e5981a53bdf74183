"""Standard output and standard error that cannot end a program."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class Stream:
    """A stream whose text goes nowhere once it cannot be written, as after `| head`."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; return the number of characters."""
        encoding = self._stream.encoding or "utf-8"  # which may lack a letter of a path
        self._try(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush, as far as that can be done."""
        self._try(self._stream.flush)

    def _try(self, call: Callable, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError:
            # what is in its buffer would fail again as Python ends, which changes the exit code
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def _open_what_is_closed() -> None:
    """Have closed standard streams lead nowhere; else files of this process get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Make both streams of this process such streams, within the block."""
    streams = sys.stdout, sys.stderr
    _open_what_is_closed()
    sys.stdout, sys.stderr = (
        Stream(stream or os.fdopen(number, "w", closefd=False))
        for number, stream in enumerate(streams, start=1)
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
