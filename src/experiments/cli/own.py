"""The user's own config files: those of `--config-dir`."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def config_dir_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Divide arguments into the folder of the user's own config files, and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=lambda folder: str(Path(folder).absolute()))
    known, others = parser.parse_known_args(arguments)
    return known.config_dir, others
