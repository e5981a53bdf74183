"""One configured run: `python run.py model=lenet5 optim=adam`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.cli import command_line, job

CONFIG = str(Path(__file__).resolve().parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")
def main(config: DictConfig) -> None:
    with job():
        from experiments.main import run  # imports JAX, which `--help` has no need of

        run(config)


if __name__ == "__main__":
    sys.exit(command_line(main))
