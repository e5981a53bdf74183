"""One configured run: `python run.py model=lenet5 optim=adam`; installed, `experiments run`."""

import sys

from experiments.cli.command import main

if __name__ == "__main__":
    sys.exit(main("run"))
