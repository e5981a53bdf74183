"""One configured run: `experiments run model=lenet5 optim=adam`."""

import sys
from typing import TYPE_CHECKING

from experiments.cli.main import job
from experiments.cli.own import with_own
from experiments.cli.startup import with_config, workers_ahead
from experiments.machine import CONFIG

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run what the command line describes."""
    sys.argv[1:] = with_own(sys.argv[1:])
    with workers_ahead(sys.argv[1:], CONFIG):
        with_config(run_one, CONFIG)


def run_one(config: "DictConfig") -> None:
    """Run a composed config."""
    with job():
        from experiments.ops import library

        library.begin()  # loads a run's libraries while this process imports JAX
        from experiments.commands.dispatch import run  # imports JAX, which `--help` has no need of

        run(config)
