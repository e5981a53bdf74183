"""The user's own code and config files: of the working directory, and of `--config-dir`.

A folder of one's own holds code, such as `mine.py`, and beside it config files that name it, such
as `conf/model/mine.yaml`. What is in the folder of a run or a study is not taken for the user's
own: it may have been sent by anybody.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.machine import CONFIG
from experiments.training.run_folder import STUDY, is_run


def with_own(arguments: Sequence[str]) -> list[str]:
    """Make the user's own code importable, after all libraries.

    Returns:
        The arguments, with `--config-dir` for a `conf/` in the working directory.
    """
    here, (config_dir, others) = Path.cwd(), config_dir_of(arguments)
    found = here / "conf"
    if taken := next((f for f in (here, *here.parents) if _may_be_sent(f)), None):
        if found.is_dir() or any(here.glob("*.py")):
            _warn(f"{taken} holds a run or a study: code and conf/ in {here} are not used")
    elif config_dir is None and found.is_dir() and not found.samefile(CONFIG):
        config_dir = str(found)
    if config_dir is not None:  # first: what its files name is beside them
        _import_from(Path(config_dir).parent)
    if taken is None:
        _import_from(here)
    if config_dir is None:
        return others
    if not any(argument.startswith("worker=") for argument in others):  # its launcher has said so
        _warn_of_hidden(Path(config_dir))
    return [*others, f"--config-dir={config_dir}"]


def config_dir_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Divide arguments into the folder of the user's own config files, and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=os.path.abspath)
    known, others = parser.parse_known_args(arguments)
    return known.config_dir, others


def _may_be_sent(folder: Path) -> bool:
    return is_run(folder) or (folder / STUDY[0]).is_file()


def _import_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _warn_of_hidden(folder: Path) -> None:
    """Warn of config files that are not read, since there are others of their names."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
    hidden = [
        name
        for name in names
        if (CONFIG / name).is_file()
        and (CONFIG / name).read_bytes() != (folder / name).read_bytes()
    ]
    if hidden:
        others = f" (nor are {len(hidden) - 1} others)" if len(hidden) > 1 else ""
        _warn(
            f"{folder / hidden[0]} is not read{others}: Experiments has a {hidden[0]} of its own; "
            f"choose another name"
        )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
