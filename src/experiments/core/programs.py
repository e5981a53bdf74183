"""The programs `run`, `sweep` and `report`: their config files, and how they are started.

A checkout has them as scripts, beside `conf/`. An installed package holds `conf/` itself and brings
the command `experiments run|sweep|report`.
"""

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CONFIG = next(path for path in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if path.is_dir())


def command(program: str) -> list[str]:
    """Return the beginning of a command that starts a program as a process."""
    # -P: else files in the working directory would come before the libraries of the same names
    return [sys.executable, "-P", "-m", "experiments.cli.command", program]


def called(program: str) -> str:
    """Return the beginning of a command as a user types it in this folder."""
    in_checkout = Path.cwd() == CONFIG.parent
    return f"python {program}.py" if in_checkout else f"experiments {program}"
