"""Deep-learning experiments: from the command line, or from Python.

from experiments import compose, load, train
from experiments import Callback, StopTraining
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.cli.python import compose, load, train
    from experiments.core.callback import Callback, StopTraining

__all__ = ["Callback", "StopTraining", "compose", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import what a user asks for, and not before: no start-up may import JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = "core.callback" if name in ("Callback", "StopTraining") else "cli.python"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
