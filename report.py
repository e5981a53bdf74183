"""What runs came to: `python report.py runs` compares the runs below a folder."""

import sys
from pathlib import Path

from experiments.cli import command_line
from experiments.errors import UserError


def main() -> None:
    """Prints a table of the runs below the folder named on the command line."""
    from experiments.insight.comparison import print_comparison

    if len(sys.argv) != 2:
        raise UserError("usage: python report.py <folder of runs>")
    print_comparison(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(command_line(main))
