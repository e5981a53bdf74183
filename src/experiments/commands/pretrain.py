"""Pretrain on images without labels, then train on labels with and without those weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import train
from experiments.core.config import check_config
from experiments.core.trust import vet
from experiments.tracking.jsonl import SUMMARY, write_json
from experiments.tracking.terminal import concise, number
from experiments.tracking.wandb import leave_run_aside
from experiments.training.run_folder import UsedFolder, run_folder


@dataclass(frozen=True)
class Pretrain:
    """The keys of `pretrain`.

    Args:
        overrides: the config of the first stage, as on a command line: model=autoencoder and so on.
            Its data are those of the other stages without data.limit, in batches of the usual size.
    """

    overrides: list[str]


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Train all three, in folders of their own, and print the test metrics of both classifiers."""
    # here, as every run checks `Pretrain` in this module
    from hydra import compose
    from omegaconf import OmegaConf

    from experiments.commands.dispatch import as_plain

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
    for name, stage in stages.items():
        print(f"-- {name}")
        stage = stage | {"mode": "train", "name": f"{config['name']}_{name}"}
        check_config(stage)
        used: UsedFolder = "cleared" if config["overwrite"] else "refused"
        with run_folder(folders[name], {"config": stage}, used=used):
            train.main(stage, folders[name], None)
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
