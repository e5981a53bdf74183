"""A run from its composed config to its exit code."""

import importlib
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.core.checking import check_config
from experiments.core.config import build, check, mismatch
from experiments.errors import UserError
from experiments.training.compiler import set_up_compiler
from experiments.training.distributed import join
from experiments.training.saved_config import saved_config
from experiments.types import Mode, PositiveInt


def run(config: DictConfig) -> None:
    """What `python run.py` does; raises `Exit` unless the run finished."""
    mode = config.mode
    if complaint := mismatch(mode, Mode):
        raise UserError(f"mode={mode}: must be {complaint}")
    join()
    directory = Path(HydraConfig.get().runtime.output_dir)
    cluster, nodes = cluster_of(config)
    source = config.resume or config.checkpoint
    module = importlib.import_module(f"experiments.commands.{mode}")
    if config.checkpoint is not None and not module.NEEDS_RUN:
        raise UserError(
            "checkpoint= goes with mode=evaluate, predict or export; to train on: resume="
        )
    if source is not None:
        overrides = list(HydraConfig.get().overrides.task)
        sample = config.sample
        config = saved_config(Path(source), overrides)
        config.sample = sample
    elif module.NEEDS_RUN:
        raise UserError(f"mode={mode} needs checkpoint=<run folder>")
    plain = as_plain(config, directory)
    check_config(plain)
    if cluster is not None:
        from experiments.search.slurm import announce, submit_run

        arguments = HydraConfig.get().overrides.task
        print(announce(directory, submit_run(directory, cluster, nodes, arguments)))
        return
    set_up_compiler(plain["trainer"]["compilation_cache"])
    module.main(plain, directory, None if source is None else Path(source))


def cluster_of(config: DictConfig) -> tuple[Any, int]:
    """(the cluster that a command is for, or None for this machine; on how many nodes)."""
    node, nodes = OmegaConf.to_container(config.cluster, resolve=True), config.nodes
    if complaint := mismatch(nodes, PositiveInt):
        raise UserError(f"nodes={nodes}: must be {complaint}")
    if nodes > 1 and not node:
        raise UserError(f"nodes={nodes}: cluster=local is this machine alone; say cluster=slurm")
    if nodes > 1 and config.mode != "train":
        raise UserError(f"nodes={nodes}: mode={config.mode} works on one node")
    check({"cluster": node})
    return (build(node) if node else None), nodes


def as_plain(config: DictConfig, directory: Path) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars; an unnamed run is called after its folder."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()} | {"name": plain["name"] or directory.name}
