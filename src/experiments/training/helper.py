"""A process beside this one, for what a run does not wait for: clients of trackers, drawing.

Importing them takes as long as importing JAX, which goes on at the same time; and while they work,
their Python does not take turns with the run's. The process ends with this one, however that ends.
"""

import atexit
import contextlib
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from experiments.errors import UserError

ENDED = "the process beside the run has ended"
OURS = ("builtins", UserError.__module__)  # where errors come from that every process has
Queue = Literal["tracking", "drawing"]
SOURCE = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Helper:
    """The process, started as this is made."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        number = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.training.helper", str(number), *sys.argv],
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, _python_path()))},
            start_new_session=True,  # Ctrl-C is for the run, which then says when it is over
        )
        theirs.close()
        self._waiting: dict[int, Future] = {}
        self._numbers = itertools.count()
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._receive, daemon=True)
        self._reader.start()

    def submit(self, queue: Queue, function: Callable[..., Any], *arguments: Any) -> Future:
        """Has it call a function of the module level; calls of one queue come one after another.

        What comes of the call can be pickled. The future fails as the call does, or if the process
        is gone.
        """
        future: Future = Future()
        call = pickle.dumps((function, arguments))
        with self._sending:
            number = next(self._numbers)
            self._waiting[number] = future
            try:
                self._connection.send((number, queue, call))
            except OSError:
                self._lose(number)
        return future

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._reader.is_alive()

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        with self._sending:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._connection.close()

    def _receive(self) -> None:
        while True:
            try:
                what, *rest = self._connection.recv()
            except (EOFError, OSError):
                break
            if what == "log":
                (record,) = rest
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
                continue
            failed, answer = rest
            future = self._waiting.pop(what)
            if failed:
                future.set_exception(_error(answer))
            else:
                future.set_result(pickle.loads(answer))
        for number in list(self._waiting):
            self._lose(number)

    def _lose(self, number: int) -> None:
        if (future := self._waiting.pop(number, None)) is not None:
            future.set_exception(ChildProcessError(ENDED))


_helper: Helper | None = None
_starting = threading.Lock()


def helper() -> Helper:
    """That of this process, started where there is none or where it was killed."""
    global _helper
    with _starting:
        if _helper is None:
            atexit.register(end)
        if _helper is None or not _helper.alive:
            _helper = Helper()
        return _helper


def end() -> None:
    """Ends the process, if there is one."""
    global _helper
    with _starting:
        found, _helper = _helper, None
    if found is not None:
        found.close()


def _python_path() -> list[str]:
    given = os.environ.get("PYTHONPATH", "")
    return [str(SOURCE), given]


# ---------------------------------------------------------------------- in the process itself


class _Sender(QueueHandler):
    """What several threads write to the connection: answers, and records of the log."""

    def __init__(self, connection: Connection):
        super().__init__(None)  # type: ignore[arg-type]
        self.connection, self.sending = connection, threading.Lock()

    def put(self, *message: Any) -> None:
        with self.sending, contextlib.suppress(OSError):  # the run is gone, which is seen to
            self.connection.send(message)

    def enqueue(self, record: logging.LogRecord) -> None:
        self.put("log", record)


def serve(connection: Connection) -> None:
    """Answers calls until the run has ended."""
    sender = _Sender(connection)
    logging.root.addHandler(sender)
    logging.root.setLevel(logging.INFO)
    queues: dict[str, ThreadPoolExecutor] = {}
    while True:
        try:
            number, queue, call = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # whatever is under way: nobody waits for it
        pool = queues.setdefault(queue, ThreadPoolExecutor(1, thread_name_prefix=queue))
        pool.submit(_answer, sender, number, call)


def _answer(sender: _Sender, number: int, call: bytes) -> None:
    try:
        function, arguments = pickle.loads(call)
        sender.put(number, False, pickle.dumps(function(*arguments)))
    except (Exception, SystemExit) as error:
        sender.put(number, True, _dumped(error))


def _dumped(error: BaseException) -> bytes:
    """One of our own errors or of Python's as itself; else its name and text.

    The run need not import what others of them are from.
    """
    if isinstance(error, UserError | OSError) and type(error).__module__ in OURS:
        return pickle.dumps(error)
    return pickle.dumps((type(error).__name__, str(error)))


def _error(answer: bytes) -> BaseException:
    error = pickle.loads(answer)
    return error if isinstance(error, Exception) else type(error[0], (Exception,), {})(error[1])


def main() -> None:
    """What the process does."""
    number, *sys.argv = sys.argv[1:]  # clients look for the program that was started
    os.set_inheritable(int(number), False)  # processes of clients are not to hold it open
    for received in SIGNALS:
        signal.signal(received, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)  # the run comes first
    serve(Connection(int(number)))


if __name__ == "__main__":
    from experiments.training import helper as module  # functions that are sent belong to that

    module.main()
