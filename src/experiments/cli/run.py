"""One configured run: `experiments run model=lenet5 optim=adam`."""

import math
import sys
from typing import TYPE_CHECKING, Any

from experiments.cli.main import job
from experiments.cli.own import with_own
from experiments.cli.startup import with_config, workers_ahead
from experiments.errors import EXIT_CODES, Exit
from experiments.machine import CONFIG

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run what the command line describes."""
    sys.argv[1:] = with_own(sys.argv[1:])
    with workers_ahead(sys.argv[1:], CONFIG):
        with_config(run_one, CONFIG)


def run_one(config: "DictConfig") -> Any:
    """Run a composed config; return the value of its metric, for a sweeper of Hydra's own.

    To such a sweeper a run that diverged has no value (NaN), and errors are its own affair.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with job():
            return _run(config)
    try:
        return _run(config)
    except Exit as ended:
        if ended.code != EXIT_CODES["diverged"]:
            raise
        single = isinstance(config.metric, str | None)
        return math.nan if single else [math.nan] * len(config.metric)


def _run(config: "DictConfig") -> Any:
    from experiments.ops import library

    library.begin()  # loads a run's libraries while this process imports JAX
    from experiments.commands.dispatch import run  # imports JAX, which `--help` has no need of

    return run(config)
