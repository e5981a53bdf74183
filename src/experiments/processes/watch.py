"""Processes that train together end together: none waits for ever for one that is gone.

Each has a connection to the first one, which sees by its end that the process has ended, however
that came: at once, or within half a minute where a machine has lost its power or its network. The
first one tells the others, and all of them end. A process that leaves in order says so before.

XLA has a watch of its own, which takes a minute or two and aborts with a stack: the last resort.
When the first process is gone XLA aborts the others at once; they put that off for some seconds.

The first one speaks. What libraries such as XLA print in the others goes into a file each.
"""

import contextlib
import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.errors import EXIT_CODES, Exit
from experiments.machine import PROGRAM

log = logging.getLogger(__name__)

LEFT = "left"  # what a process says that ends in order; else the exit code that it ends with
SECONDS = 60  # in which a connection comes about
PATIENCE = 1.0  # seconds for the first process to end with an error that all have
# of a connection on which nothing is said, in seconds: it is tried after 10 and given up after 30
TRIED = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

SHOW_CURSOR = b"\x1b[?25h\n"  # which the live display of a terminal hides

OUTPUT = "process_{}.log"  # what libraries print in a process, by its number

_watch: "Watch | None" = None
_output: Path | None = None  # of this process


class Watch:
    """The connections of this process to the others of its training, watched by a thread.

    Args:
      index, count: which of the processes this is, and how many there are.
      advice: what to do once they have ended.
    """

    def __init__(self, index: int, count: int, advice: str):
        self.index, self.count, self.advice = index, count, advice
        self._names: dict[socket.socket, str] = {}  # of those that have not left, at the other end
        self._unread: dict[socket.socket, bytes] = {}  # the beginning of a line

    def listen(self, secret: str) -> int:
        """Let the others connect, who know the secret; return the port. The first one does."""
        dual = socket.has_dualstack_ipv6()
        options: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True}
        listener = socket.create_server(("", 0), **(options if dual else {}))
        self._start(self._serve, listener, secret)
        return listener.getsockname()[1]

    def connect(self, host: str, port: int, secret: str) -> None:
        """Connect to the first process, as the others do."""
        first = socket.create_connection((host, port), timeout=SECONDS)
        first.settimeout(None)
        first.sendall(f"{secret} {self.index} {socket.gethostname()}\n".encode())
        self._add(first, f"process 0 of {self.count}")
        if PROGRAM is not None:  # a handler's argument is the number of the signal: six seconds
            PROGRAM.signal(int(signal.SIGABRT), ctypes.cast(PROGRAM.sleep, ctypes.c_void_p))
        self._start(self._follow, first)

    def tell(self, what: str) -> None:
        """Tell the others that this process leaves in order, or the exit code that it ends with.

        From then on their end makes no difference to it.
        """
        others, self._names = list(self._names), {}
        for other in others:
            with contextlib.suppress(OSError):  # it has ended
                other.sendall(f"{what}\n".encode())

    def _start(self, watch: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=watch, args=arguments, name="watch", daemon=True).start()

    def _add(self, other: socket.socket, name: str) -> None:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in TRIED.items():  # not every system has each of them
            if hasattr(socket, option):
                other.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        self._names[other] = name

    def _serve(self, listener: socket.socket, secret: str) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        selector.register(listener.accept()[0], selectors.EVENT_READ)
                        continue
                    other: Any = key.fileobj
                    if not self._hear(other, secret):
                        selector.unregister(other)
                        other.close()

    def _follow(self, first: socket.socket) -> None:
        while self._hear(first):
            pass

    def _hear(self, other: socket.socket, secret: str = "") -> bool:
        """Hear what is said on a connection; return whether there may be more."""
        try:
            said = other.recv(4096)
        except OSError:  # nothing comes back from its machine
            said = b""
        if not said:
            if other in self._names:
                self._end(other, EXIT_CODES["failed"], said=False)
            return False
        *lines, self._unread[other] = (self._unread.get(other, b"") + said).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if other not in self._names:
                mine, _, rest = text.partition(" ")
                if not secret or mine != secret:  # a stranger, or one that has left
                    return False
                index, _, host = rest.partition(" ")
                self._add(other, f"process {index} of {self.count} ({host})")
            elif text == LEFT:
                del self._names[other]
            else:
                self._end(other, int(text), said=True)
        return True

    def _end(self, other: socket.socket, code: int, *, said: bool) -> None:
        """End this process, since another one has ended; one of those that are left says so."""
        message = f"{self._names.pop(other)} has ended, and this training with it; {self.advice}"
        self.tell(str(code))
        if self.index == 0:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR)
            log.error(message)
        elif self.index == 1 and not said:  # the first one was not able to
            print(message, file=sys.stderr, flush=True)
        _remove_output()
        os._exit(code)


def keep_output_apart(path: Path) -> None:
    """Have what libraries print in this process go into a file, in which only a crash leaves it.

    What Python prints goes where it went.
    """
    global _output
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    except OSError:  # a folder that this process does not see
        return
    for name, number in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1, errors="backslashreplace"))
        os.dup2(file, number)
    os.close(file)
    _output = path


def _remove_output() -> None:
    if _output is not None:
        with contextlib.suppress(OSError):  # the folder is gone
            _output.unlink()


def begin(watch: Watch) -> None:
    """Have this process end with the others that `watch` is connected to."""
    global _watch
    _watch = watch


@contextlib.contextmanager
def until_it_ends() -> Iterator[None]:
    """Leave the others in order at the end of the block, where all come to the same end."""
    try:
        yield
    except Exit:
        _leave()
        raise
    _leave()


def _leave() -> None:
    global _watch
    if _watch is not None:
        _watch.tell(LEFT)
        _watch = None
        _remove_output()


def let_others_speak(*, first_too: bool) -> None:
    """Wait before an error of this process is printed: it may be that of all, or another's end."""
    if _watch is not None and (first_too or _watch.index):
        time.sleep(PATIENCE)


def end(code: int) -> None:
    """End this process with this exit code if it has left others waiting, who then end too.

    JAX would wait minutes for them.
    """
    if _watch is not None:
        _watch.tell(str(code))
        _remove_output()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
