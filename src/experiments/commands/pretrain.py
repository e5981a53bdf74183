"""Pretrains on images without their labels, then trains on labels with and without what it gave."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.commands import train
from experiments.core.checking import check_config
from experiments.tracking.jsonl import SUMMARY, write_json
from experiments.tracking.terminal import number

NEEDS_RUN = False


@dataclass(frozen=True)
class Pretrain:
    """The keys of `pretrain`.

    Args:
      overrides: what the first stage is, as on a command line: model=autoencoder and so on. Its
        data are those of the other stages without data.limit, in batches of the usual size.
    """

    overrides: list[str]


def main(config: dict[str, Any], directory: Path, source: Path | None) -> None:
    """Three runs in folders of their own; prints what the two classifiers reached in the test."""
    from hydra import compose  # every run holds its keys of `pretrain` against this module
    from omegaconf import OmegaConf

    from experiments.commands.dispatch import as_plain

    folders = {name: directory / name for name in ("pretraining", "pretrained", "from_scratch")}
    first = as_plain(compose("config", config["pretrain"]["overrides"]), folders["pretraining"])
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
        (folders[name] / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(stage), folders[name] / ".hydra" / "config.yaml")
        train.main(stage, folders[name], None)
    reached = {
        f"{name}/{key}": value
        for name in ("pretrained", "from_scratch")
        for key, value in json.loads((folders[name] / SUMMARY).read_text()).items()
        if key.startswith("test/")
    }
    write_json(directory / SUMMARY, reached | {"labels": config["data"]["limit"]})
    print("-- in the test")
    for name, value in reached.items():
        print(f"{name:28} {number(value)}")
