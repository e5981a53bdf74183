"""Searches over hyperparameters: `python sweep.py sweeps/lenet5_lr_wd.yaml workers=2`."""

import sys
from pathlib import Path

from experiments import machine

if __name__ == "__main__":
    machine.end_on_signals()  # Ctrl-C while the rest is imported

from experiments.cli.main import command_line
from experiments.cli.sweep import sweep

CONFIG = Path(__file__).resolve().parent / "conf"


def main() -> None:
    sweep(sys.argv[1:], CONFIG)


if __name__ == "__main__":
    sys.exit(command_line(main, hydra=False))
