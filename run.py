"""One configured run: `python run.py model=lenet5 optim=adam`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from experiments.cli import command_line, job, warm_up, workers_ahead

CONFIG = Path(__file__).resolve().parent / "conf"


def main() -> None:
    with workers_ahead(sys.argv[1:], CONFIG):
        import hydra  # the workers of a search do not wait for it

        with_config = hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")
        with_config(run_one)()


def run_one(config: DictConfig) -> None:
    with job():
        warm_up(config)
        from experiments.main import run  # imports JAX, which `--help` has no need of

        run(config)


if __name__ == "__main__":
    sys.exit(command_line(main))
