"""Deep-learning experiments: from the command line, or from Python.

from experiments import Callback, StopTraining
"""

from typing import Any

_HOMES = dict.fromkeys(("Callback", "StopTraining"), "experiments.core.callback")


def __getattr__(name: str) -> Any:
    """Import what a user asks for, and not before: no start-up may import JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
