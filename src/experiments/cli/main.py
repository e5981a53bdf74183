"""Running an entry point of the command line: its exit code, and its errors in plain lines.

0    the run finished, or stopped early as it was configured to
1    it diverged, or the program failed
2    there is something that the user can correct
75   it was interrupted and can be resumed
130  Ctrl-C before there was anything to save
"""

import atexit
import contextlib
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from experiments import machine
from experiments.cli.output import harmless
from experiments.cli.startup import FULL_ERROR, TRACEBACKS, for_hydra
from experiments.errors import Exit, masked
from experiments.processes import watch

# Hydra, OmegaConf and JAX are imported where they are used: `--help` has to be quick, and the
# workers of a search start before that.

# As it ends, Python looks through all objects, which takes long with JAX, but skips frozen ones.
# Registered before all other functions, this is called after them.
atexit.register(gc.freeze)


@harmless()
def command_line(main: Callable[[], Any], *, hydra: bool = True) -> int:
    """Call a main function and return the exit code.

    Errors that the user can correct are printed as one or two plain lines, with the nearest valid
    names; with `HYDRA_FULL_ERROR=1` every error shows its traceback.

    Args:
        main: takes its arguments from `sys.argv`.
        hydra: translate the arguments for Hydra first, because `main` is one of its functions.
    """
    code = _called(main, hydra)
    watch.end(code)
    return code


def _called(main: Callable[[], Any], hydra: bool) -> int:
    machine.collect_garbage_seldom()
    machine.end_with_launcher()
    machine.ensure_home()
    full = os.environ.get(FULL_ERROR, "0") not in ("", "0")
    logging.raiseExceptions = False  # a log file on a full disk is no reason for tracebacks
    sys.unraisablehook = _report_unraisable
    try:
        with _ends_at_once():
            if hydra:
                sys.argv[1:] = for_hydra(sys.argv[1:])
            main()
    except KeyboardInterrupt:
        sys.stderr.write(machine.INTERRUPTED.decode())
        return 130
    except (Exit, Exception) as ended:
        if isinstance(ended, Exit) and ended.__cause__ is None:
            return ended.code
        error = ended.__cause__ if isinstance(ended, Exit) else ended
        assert error is not None
        from experiments.cli.messages import explain

        message = explain(error)
        code = 1 if message is None else 2
        watch.let_others_speak(first_too=message is None)
        if full or message is None:
            message = "".join(traceback.format_exception(error)).rstrip()
        print(masked(message), file=sys.stderr)
        return code
    return 0


@contextlib.contextmanager
def job() -> Iterator[None]:
    """Carry errors past Hydra to `command_line`; for what a main function of Hydra's does."""
    os.environ[FULL_ERROR] = TRACEBACKS
    try:
        yield
    except Exception as error:
        raise Exit(1) from error
    finally:
        os.environ[FULL_ERROR] = "1"


@contextlib.contextmanager
def _ends_at_once() -> Iterator[None]:
    """Have signals end the process within the block."""
    before = machine.end_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_unraisable(unraisable: Any) -> None:
    """Report as Python does, but not the error of TensorStore after Orbax gave up a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
