"""Searches over hyperparameters: `python sweep.py sweeps/lenet5_lr_wd.yaml workers=2`."""

import sys

from experiments.cli.command import main

if __name__ == "__main__":
    sys.exit(main("sweep"))
