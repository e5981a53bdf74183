"""Errors that the user can correct, and the exit codes of the program."""

import difflib
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

EXIT_CODES = {"finished": 0, "stopped_early": 0, "diverged": 1, "failed": 1, "interrupted": 75}
"""The exit code for each status that a run can end with."""

MASK = "***"
SECRET = r"(?:api_?key|(?:access|auth)_?token|password|passwd|pwd|secret)"  # ends of names
PASSWORD = re.compile(rf"(://[^\s:/@]*:)\S*(?=@)|({SECRET}=)[^\s&'\"]*", re.IGNORECASE)

# by what it was told in the environment: no such device, or no such value
JAX_REFUSES = re.compile(r"^(Unable to initialize|Unknown) backend|for environment 'JAX_|JAX flag")


class UserError(Exception):
    """An error that the user can correct: the message says what, where and what to do.

    Entry points print the message without a traceback and exit with code 2.
    """


class Exit(BaseException):
    """Ends the program with an exit code; not an `Exception`, so Hydra does not report it."""

    def __init__(self, code: int):
        self.code = code


def masked(text: str) -> str:
    """Return a text without the passwords of URLs and other secrets: `postgresql://me:***@host/db`."""
    return PASSWORD.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, each once."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def unusable(key: str, path: object, error: OSError) -> UserError:
    """Return the error that says what the system says of a path that a key of the config names."""
    return UserError(f"{key}={path}: {os.strerror(error.errno or 0).lower()}")


def refusal_of_jax(error: BaseException) -> str | None:
    """Return why JAX does not begin, in two lines, if it is for what the environment tells it."""
    if isinstance(error, RuntimeError | ValueError) and JAX_REFUSES.search(str(error)):
        reason = str(error).splitlines()[0]
    elif isinstance(error, AssertionError) and error.__traceback__ is not None:
        # for CUDA without a GPU it has no words: it asserts that it has found a device
        raised = traceback.extract_tb(error.__traceback__)[-1]
        if (Path(raised.filename).stem, raised.name) != ("xla_bridge", "backends"):
            return None
        reason = "this machine has no such device"
    else:
        return None
    given = "; ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("JAX_"))
    return f"JAX cannot begin: {reason}\nit was told {given}"


def suggest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """Return the nearest valid names as `; did you mean 'a' or 'b'?`, or an empty string."""
    names = [str(one) for one in valid]
    near = difflib.get_close_matches(str(name), names, n=count, cutoff=0.6)
    if not near and len(str(name)) > 2:
        near = [one for one in names if one.startswith(str(name))][:count]
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
