"""From a composed config to the mode that it asks for, here or on a cluster."""

import contextlib
import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode as HydraMode
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.core import trust
from experiments.core.config import build, check, check_config, mismatch, settled
from experiments.errors import UserError, suggest
from experiments.processes import together, watch
from experiments.search.configs import check_added
from experiments.search.goals import COSTS
from experiments.tracking.log_file import LOG, log_file
from experiments.training.distributed import check_same, is_first, join
from experiments.training.metrics import result
from experiments.training.options import check_said, check_sizes, check_trains
from experiments.training.run_folder import HYDRA, UsedFolder, run_folder, said_again
from experiments.training.runtime import set_up_compiler
from experiments.training.saving.config import saved_config, with_found
from experiments.types import Mode, PositiveInt, RunMode, TrainingMode

BEGUN = (HYDRA, LOG, ".lock")  # what a run has in its folder before anything is trained
AS_THEY_ARE = ("evaluate", "predict", "export", "sample")  # modes for pretrained weights
PARENTS = 2  # that Hydra may have made for a run: runs/<date>


def run(config: DictConfig) -> Any:
    """Run the program `run` with a composed config.

    Returns:
        Of mode=train, what sweepers of Hydra's own go by: the value of `metric`, or of each.

    Raises:
        Exit: the run did not finish.
        UserError: the config is wrong.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    said = any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra)
    with contextlib.nullcontext() if said else _removed_if_unused(directory):
        return _run(config, directory, said)


@contextlib.contextmanager
def _removed_if_unused(directory: Path) -> Iterator[None]:
    """Remove a folder that Hydra has made for a command that leaves nothing in it.

    Neither does a refused one, which may have begun to say what it is of.
    """
    begun: tuple[str, ...] = ()
    try:
        yield
    except UserError:
        begun = BEGUN
        raise
    finally:
        _remove_unused(directory, begun)


def _remove_unused(directory: Path, begun: tuple[str, ...] = ()) -> None:
    """Remove a folder that has no more in it than `begun`, and those that it lies alone in."""
    others = {path.name for path in directory.glob(watch.OUTPUT.format("*"))}  # which end too
    if directory.is_dir() and {path.name for path in directory.iterdir()} <= {*begun, *others}:
        shutil.rmtree(directory)
        with contextlib.suppress(OSError):  # of the first that has something else in it
            for parent in directory.parents[:PARENTS]:
                parent.rmdir()


def _run(config: DictConfig, directory: Path, said: bool) -> Any:
    check_command(config)
    searched = HydraConfig.get().mode == HydraMode.MULTIRUN  # by a sweeper of Hydra's own
    if config.metric is not None and not searched:
        raise UserError(f"metric={config.metric}: a key of searches; say -m")
    mode, source, metric = config.mode, config.resume or config.checkpoint, config.metric
    used: UsedFolder = "continued" if config.resume else "refused"
    if config.overwrite:
        used = "cleared"
    trains = mode in get_args(TrainingMode)
    cluster, nodes = cluster_of(config)
    if mode == "train" and cluster is None and not searched:
        own, directory = directory, join(directory)
        if directory != own:
            _remove_unused(own)
    else:
        together.check_alone(
            "a search" if searched else f"mode={mode}" if cluster is None else "cluster="
        )
    arguments = list(HydraConfig.get().overrides.task)
    record = record_of(config) if trains else {}
    trust.allow(own_folders(), config.allow)
    again = arguments_of_job(config, directory, arguments)
    cache = config.trainer.compilation_cache  # not the run's: programs in a folder are executed
    if source is not None:
        source = Path(to_absolute_path(source))  # with hydra.job.chdir Hydra has left its folder
        given = config.input
        config = saved_config(source, arguments)
        config.input = given
        if trains and config.mode != "train":
            raise UserError(f"{source} is of mode={config.mode}, which has nothing to resume")
    else:
        unresolved: Any = OmegaConf.to_container(config, resolve=False)
        check_added(arguments, unresolved, HydraConfig.get().runtime.choices)
    plain = as_plain(config, directory, source)
    if trains:
        check_trains(plain)
    check_config(plain)
    check_said(arguments, plain)
    if mode == "train" and cluster is None:  # the data may lie where the job runs
        check_sizes(plain)
    if cluster is not None:
        trust.vet(plain, "a job")  # which goes on with the config in its folder when it is requeued
    with contextlib.ExitStack() as stack:
        # a job that goes on with a run may be queued while that still trains
        if trains and is_first() and (cluster is None or used != "continued"):
            stack.enter_context(run_folder(directory, record, used=used))
        if cluster is not None:
            from experiments.search.slurm import submit_run

            print(submit_run(directory, cluster, nodes, again))
            return None
        if trains and is_first():
            stack.enter_context(log_file(directory))
        set_up_compiler(cache, plain["trainer"])
        command = importlib.import_module(f"experiments.commands.{mode}")
        # the evaluation of weights that are in no run
        prints = (not trains and mode not in get_args(RunMode)) or (
            mode == "evaluate" and not source
        )
        with watch.until_it_ends():
            check_same(plain)
            summary = command.main(plain, None if prints and not said else directory, source)
        return sought(summary, metric) if mode == "train" else None


def sought(summary: dict[str, Any], metric: Any) -> Any:
    """Return the value of a metric in the summary of a run, a list of several.

    None stands for the monitored one.

    Raises:
        UserError: the run has no such metric.
    """
    if isinstance(metric, ListConfig):
        return [sought(summary, one) for one in metric]
    if (found := result(summary, metric or summary["monitor"])) is None:
        there = [name for name in (*summary["best"], *COSTS) if "/" in name or name in COSTS]
        raise UserError(f"metric={metric}: this run has no such metric{suggest(metric, there)}")
    return float(found)


def check_command(config: DictConfig) -> None:
    """Check the keys of a command, which are no part of a run; raise `UserError`."""
    mode, source = config.mode, config.resume or config.checkpoint
    if complaint := mismatch(mode, Mode):
        raise UserError(f"mode={mode}: must be {complaint}")
    of_runs = (*get_args(RunMode), "summary")
    if config.checkpoint is not None and mode not in of_runs:
        *most, last = of_runs
        raise UserError(
            f"checkpoint= goes with mode={', '.join(most)} or {last}; to train on: resume="
        )
    if config.input is not None and mode not in ("predict", "inspect"):
        raise UserError(f"input= goes with mode=predict and inspect, not with mode={mode}")
    if complaint := mismatch(config.input, str | None):
        raise UserError(f"input={config.input}: must be {complaint}")
    if source is None and mode in get_args(RunMode):
        as_they_are = mode in AS_THEY_ARE
        if not (as_they_are and config.model.pretrained):
            other = " or model.pretrained=<weights>" if as_they_are else ""
            raise UserError(f"mode={mode} needs checkpoint=<run folder>{other}")
    if complaint := mismatch(config.overwrite, bool):
        raise UserError(f"overwrite={config.overwrite}: must be {complaint}")
    if config.overwrite and (config.resume or mode not in get_args(TrainingMode)):
        other = "resume=" if config.resume else f"mode={mode}"
        raise UserError(f"overwrite=true is for a new training, not for {other}")


def arguments_of_job(config: DictConfig, directory: Path, arguments: list[str]) -> list[str]:
    """Return arguments with which a job does this command, also when it is started again."""
    sources = HydraConfig.get().runtime.config_sources
    flags = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    own = ("cluster", "nodes", "overwrite")
    arguments = [a for a in arguments if re.split("[.=]", a)[0] not in own]
    where = f"hydra.run.dir={directory}"
    if config.resume:
        return [*flags, *arguments]
    if config.mode == "train":  # its config is in the folder
        return [*flags, f"resume={directory}", *said_again(arguments)]
    if config.mode in get_args(TrainingMode):  # without checkpoints
        return [*flags, *arguments, where, "overwrite=true"]
    return [*flags, *arguments, where]


def record_of(config: DictConfig) -> dict[str, Any]:
    """Return what `.hydra` says of a run: the files that Hydra writes there for others."""
    hydra = OmegaConf.to_container(HydraConfig.get(), enum_to_str=True)
    overrides = list(HydraConfig.get().overrides.task)
    plain = OmegaConf.to_container(config, enum_to_str=True)
    return {"config": plain, "hydra": {"hydra": hydra}, "overrides": overrides}


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


def as_plain(config: DictConfig, directory: Path, source: Path | None = None) -> dict[str, Any]:
    """Return the config as dicts, lists and scalars; a run without a name gets its folder's.

    `source` is the run that it is of, if that has begun. A number alone, as Hydra's sweepers call
    folders, is no name.
    """
    own = directory.name
    own = f"{directory.parent.name}-{own}" if own.isdigit() else own
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    named = {str(k): v for k, v in plain.items()} | {"name": plain["name"] or own}
    return settled(with_found(named, source) if source else named)
