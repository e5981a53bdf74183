"""One configured run: `python run.py model=lenet5 optim=adam`."""

import sys

import hydra
from omegaconf import DictConfig

from experiments.cli import command_line, job


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    with job():
        from experiments.main import run  # imports JAX, which `--help` has no need of

        run(config)


if __name__ == "__main__":
    sys.exit(command_line(main))
