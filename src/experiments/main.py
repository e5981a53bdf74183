"""A run from its composed config to its exit code."""

import functools
import importlib
import pickle
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.compiler import set_up_compiler
from experiments.config import build, check, leaves, mismatch
from experiments.errors import UserError
from experiments.saved import saved_config
from experiments.tracking.choice import nodes
from experiments.training.distributed import join
from experiments.types import Mode, PositiveInt, Seed

MISSING = "???"  # OmegaConf's word for a value that is still to be given


def run(config: DictConfig) -> None:
    """What `python run.py` does; raises `Exit` unless the run finished."""
    mode = config.mode
    if complaint := mismatch(mode, Mode):
        raise UserError(f"mode={mode}: must be {complaint}")
    join()
    directory = Path(HydraConfig.get().runtime.output_dir)
    cluster, nodes = cluster_of(config)
    source = config.resume or config.checkpoint
    module = importlib.import_module(f"experiments.modes.{mode}")
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


def check_config(config: dict[str, Any]) -> None:
    """Holds every value of a config against what it is for, before anything is read or compiled."""
    missing = sorted(path for path, value in leaves(config) if value == MISSING)
    if missing:
        raise UserError(f"{missing[0]} has no value; say {missing[0]}=...")
    if complaint := mismatch(config["seed"], Seed):
        raise UserError(f"seed={config['seed']}: must be {complaint}")
    for key, value, hint in (
        ("model.pretrained", config["model"]["pretrained"], str | None),
        ("freeze", config["freeze"], str | list[str] | None),
    ):
        if complaint := mismatch(value, hint):
            raise UserError(f"{key}={value}: must be {complaint}")
    groups = {group: node for group, node in config.items() if isinstance(node, dict)}
    loggers = nodes(groups.pop("logger"))
    for name, node in (groups | loggers).items():
        _check_group(pickle.dumps({name: node}))
    for group in ("optim", "discriminator_optim"):
        build(config.get(group))  # checks the arguments of its rule


@functools.lru_cache(maxsize=256)
def _check_group(pickled: bytes) -> None:
    """`check` of a group; most trials of a study share most of theirs."""
    check(pickle.loads(pickled))
