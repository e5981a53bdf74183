"""Reports on runs and studies: `python report.py runs`."""

import sys

from experiments.cli.command import main

if __name__ == "__main__":
    sys.exit(main("report"))
