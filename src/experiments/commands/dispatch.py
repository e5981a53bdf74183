"""From a composed config to the mode that it asks for, here or on a cluster."""

import importlib
from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.core import trust
from experiments.core.config import build, check, check_config, mismatch
from experiments.errors import UserError
from experiments.training.distributed import join
from experiments.training.run_folder import saved_config
from experiments.training.runtime import set_up_compiler
from experiments.types import Mode, PositiveInt, RunMode


def run(config: DictConfig) -> None:
    """Run `python run.py` with a composed config.

    Raises:
        Exit: the run did not finish.
        UserError: the config is wrong.
    """
    mode, source = config.mode, config.resume or config.checkpoint
    if complaint := mismatch(mode, Mode):
        raise UserError(f"mode={mode}: must be {complaint}")
    if config.checkpoint is not None and mode not in get_args(RunMode):
        *most, last = get_args(RunMode)
        raise UserError(
            f"checkpoint= goes with mode={', '.join(most)} or {last}; to train on: resume="
        )
    if source is None and mode in get_args(RunMode):
        raise UserError(f"mode={mode} needs checkpoint=<run folder>")
    join()
    directory = Path(HydraConfig.get().runtime.output_dir)
    cluster, nodes = cluster_of(config)
    arguments = list(HydraConfig.get().overrides.task)
    trust.allow(own_folders(), config.allow)
    cache = config.trainer.compilation_cache  # not the run's: programs in a folder are executed
    if source is not None:
        config = saved_config(Path(source), arguments)
    plain = as_plain(config, directory)
    check_config(plain)
    if cluster is not None:
        trust.vet(plain, "a job")  # which goes on with the config in its folder when it is requeued
        from experiments.search.slurm import submit_run

        print(submit_run(directory, cluster, nodes, arguments))
        return
    set_up_compiler(cache)
    command = importlib.import_module(f"experiments.commands.{mode}")
    command.main(plain, directory, None if source is None else Path(source))


def own_folders() -> list[Path]:
    """Return the folders that Hydra composes the command's config of."""
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"]


def cluster_of(config: DictConfig) -> tuple[Any, int]:
    """Return the cluster that a command is for, None for this machine, and the number of nodes."""
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
    """Return the config as dicts, lists and scalars; a run without a name gets its folder's."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()} | {"name": plain["name"] or directory.name}
