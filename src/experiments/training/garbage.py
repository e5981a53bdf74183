"""How often Python looks for objects that only hold each other.

Importing and tracing make some hundred thousand objects that stay. Looked through as often as usual
they take a seventh of the time of importing JAX, and a tenth of a short run.
"""

import gc

USUAL = gc.get_threshold()
SELDOM = (100_000, 50, 100)


def seldom() -> None:
    """From here on Python looks seldom: a program starts."""
    gc.set_threshold(*SELDOM)


def as_usual() -> None:
    """From here on it looks as often as ever: garbage may hold the memory of a device."""
    gc.set_threshold(*USUAL)
