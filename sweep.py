"""Searches over hyperparameters: `python sweep.py sweeps/lenet5_lr_wd.yaml workers=2`."""

import sys
from pathlib import Path

from experiments.cli.main import command_line

CONFIG = Path(__file__).resolve().parent / "conf"


def main() -> None:
    from experiments.search.command import sweep  # imports Optuna, which `run.py` has no need of

    sweep(sys.argv[1:], CONFIG)


if __name__ == "__main__":
    sys.exit(command_line(main, hydra=False))
