"""Pretrain on images without labels, then train on labels with and without those weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import train
from experiments.core.config import check_config
from experiments.core.params import merged
from experiments.core.transfer import named
from experiments.core.trust import vet
from experiments.errors import UserError
from experiments.tracking.jsonl import SUMMARY, write_json
from experiments.tracking.terminal import concise, number
from experiments.tracking.wandb import leave_run_aside
from experiments.training.options import check_lengths, check_sizes
from experiments.training.restored import check_fitting
from experiments.training.run_folder import UsedFolder, run_folder
from experiments.training.setup import Setups


@dataclass(frozen=True)
class Pretrain:
    """The keys of `pretrain`.

    Args:
        overrides: the config of the first stage, as on a command line: model=autoencoder and so on.
            Its data are those of the other stages without data.limit, in batches of the usual size.
    """

    overrides: list[str]


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Train all three, in folders of their own, and print the test metrics of both classifiers.

    Nothing is trained before all three are checked, with the data that they read.
    """
    # here, as every run checks `Pretrain` in this module
    from hydra import compose
    from omegaconf import OmegaConf

    from experiments.commands.dispatch import as_plain

    if (given := config["model"]["pretrained"]) is not None:
        raise UserError(
            f"model.pretrained={given}: mode=pretrain compares its own weights with none; "
            "to go on from others: 'pretrain.overrides=[model.pretrained=...]'"
        )
    leave_run_aside()
    folders = {name: directory / name for name in ("pretraining", "pretrained", "from_scratch")}
    composed = compose("config", config["pretrain"]["overrides"])
    if source is not None:
        vet(OmegaConf.to_container(composed), source)
    first = as_plain(composed, folders["pretraining"])
    data = config["data"] | {"limit": None, "batch_size": first["data"]["batch_size"]}
    shared = {"data": data, "seed": config["seed"], "logger": config["logger"]}
    model = config["model"] | {"pretrained": str(folders["pretraining"])}
    stages = {
        "pretraining": first | shared,
        "pretrained": config | {"model": model},
        "from_scratch": config,
    }
    stages = {
        name: stage | {"mode": "train", "name": f"{config['name']}_{name}"}
        for name, stage in stages.items()
    }
    setups = checked(stages)
    for name, stage in stages.items():
        print(f"-- {name}")
        used: UsedFolder = "cleared" if config["overwrite"] else "refused"
        with run_folder(folders[name], {"config": stage}, used=used):
            train.main(stage, folders[name], None, setups)
    tested = {
        f"{name}/{key}": value
        for name in ("pretrained", "from_scratch")
        for key, value in json.loads((folders[name] / SUMMARY).read_text()).items()
        if key.startswith("test/")
    }
    write_json(directory / SUMMARY, tested | {"labels": config["data"]["limit"]})
    print("-- in the test")
    for name, value in tested.items():
        if concise(name.partition("/")[2], config["trainer"]["monitor"]):
            print(f"{name:28} {number(value)}")


def checked(stages: dict[str, dict[str, Any]]) -> Setups:
    """Check the configs of all stages; return their setups, whose data have been read.

    Raises:
        UserError: a stage is wrong, or the pretrained one can start from no weight of the first.
    """
    setups, shapes = Setups(), {}
    for check in (check_config, check_sizes, setups.of):  # what takes longest comes last
        for name, stage in stages.items():
            try:
                setup = check(stage)
                if setup is not None:
                    check_lengths(stage, setup.experiment.steps_per_epoch)
                    _ = setup.monitor
                    shapes[name] = merged(setup.shapes.params, setup.shapes.model_state)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
    check_fitting("pretrain.overrides", named(shapes["pretraining"]), shapes["pretrained"])
    return setups
