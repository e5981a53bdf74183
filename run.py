"""One configured run: `python run.py model=lenet5 optim=adam`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import machine

if __name__ == "__main__":
    machine.end_on_signals()  # Ctrl-C while the rest is imported

from experiments.cli.main import command_line, job
from experiments.cli.startup import with_config, workers_ahead

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG = Path(__file__).resolve().parent / "conf"


def main() -> None:
    with workers_ahead(sys.argv[1:], CONFIG):
        with_config(run_one, CONFIG)


def run_one(config: "DictConfig") -> None:
    with job():
        from experiments.ops import library

        library.begin()  # loads a run's libraries while this process imports JAX
        from experiments.commands.dispatch import run  # imports JAX, which `--help` has no need of

        run(config)


if __name__ == "__main__":
    sys.exit(command_line(main))
