"""Errors that are the user's to correct."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something a user can put right: the message says what, where and what to do.

    Entry points print the message without a traceback and exit with code 2.
    """


def suggest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """The nearest valid names as `; did you mean 'a' or 'b'?`, or an empty string."""
    near = difflib.get_close_matches(str(name), list(valid), n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
