"""A run folder: its lock, its config, its log and its checkpoints.

.lock                  held by the process that trains in the folder
.hydra/config.yaml     the config that the run was started with
.hydra/hydra.yaml      the choices that it was composed of (of a trial: overrides.yaml)
run.log                what was logged while it trained
data.json              what was found in the user's own data, such as classes and scales
checkpoints/<step>/    what the run resumes from

Nothing in a run folder changes before its lock is held.
"""

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from experiments.core.config import Dumper
from experiments.core.names import locate
from experiments.core.trust import vet, vet_objects
from experiments.errors import UserError, suggest
from experiments.machine import remove_parts, write_whole
from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, SUMMARY, read_mapping
from experiments.tracking.log_file import LOG

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra and OmegaConf are imported where configs are read: the workers of a search need neither.

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
HYDRA = ".hydra"
FOUND = "data.json"  # what was found in the data of the user's own
INSPECTION = "inspect"  # the folder of what mode=inspect finds
EVALUATIONS = "evaluations"  # the folder of what mode=evaluate finds
PACKAGE = __name__.partition(".")[0]

COMMAND = (
    *("mode", "resume", "checkpoint", "input", "overwrite", "cluster", "nodes", "allow"),
    *("metric", "folders"),
)
"""Keys of a command, not of the run that it names."""

CODE = ("allow=", "trainer.compilation_cache=")
"""Keys that are never taken from a run folder, since they decide which code runs."""

ALWAYS = ("data", "model", "optim", "trainer", "seed", "name")
"""Keys of the config of every run, whatever its version; a torn file lacks the last ones."""

OPEN = {"callbacks", "metrics"}
"""Groups of the config in which the user chooses the keys."""

RESULTS = (METRICS, SUMMARY, CHECKPOINTS, "lr_range.json", "lesson.json")
"""What shows that something was trained in a folder."""

STUDY = ("study.yaml", "trials")
"""What shows that a folder is that of a study, which no run clears or writes into."""

OTHERS = (
    *(HYDRA, LOG, "figures", "profile", "populations", "metrics.csv", "tensorboard", "wandb"),
    *(FOUND, EVALUATIONS, INSPECTION, provenance.FILE, provenance.PATCHES, "mistakes.csv"),
    *("predictions.csv", "predictions.parquet", "sample.txt", "samples.npz", "samples.png"),
    *("model.stablehlo", "model.safetensors", "model.json", "model.onnx"),
    *("wandb_run.json", "mlflow_run.json"),
)
"""What else may be in it that this program wrote."""

UsedFolder = Literal["refused", "cleared", "continued"]
"""What happens to a folder that holds a run already."""


@contextlib.contextmanager
def run_folder(
    folder: Path,
    record: Mapping[str, Any],
    *,
    used: UsedFolder = "refused",
) -> Iterator[None]:
    """Hold the lock of a run folder, which is made; write what `.hydra` says of the run.

    Args:
      record: contents of the files `.hydra/<name>.yaml`, for a run that begins.
      used: what happens to a folder that holds a run.

    Raises:
        UserError: another process trains in `folder`, or it holds a run and `used` refuses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        for name in (METRICS, LOG, "metrics.csv"):  # in a folder of others they may lead anywhere
            if (path := folder / name).is_symlink() and (path.is_file() or not path.exists()):
                raise UserError(f"{path} is a link, which is not written through")
        for part in (folder, folder / "figures"):
            remove_parts(part)
        if any((folder / name).exists() for name in STUDY):
            raise UserError(f"{folder} is the folder of a study; choose another one for a run")
        if used == "continued" and is_run(folder):
            yield
            return
        if used == "cleared":
            _clear(folder)
        check_unused(folder)
        (folder / HYDRA).mkdir(exist_ok=True)
        # the config comes last: it makes the folder that of a run
        for name in sorted(record, key=lambda name: name == "config"):
            text = yaml.dump(record[name], Dumper=Dumper, sort_keys=False, allow_unicode=True)
            write_whole(folder / HYDRA / f"{name}.yaml", text)
        yield


def check_unused(folder: Path) -> None:
    """Raise `UserError` if `folder` holds a run."""
    found = [name for name in RESULTS if (folder / name).is_file() or (folder / name).is_dir()]
    if found:
        raise UserError(
            f"{folder} holds a run already ({', '.join(found)})\n"
            f"go on with it by {shlex.quote(f'resume={folder}')}, choose another folder by "
            f"hydra.run.dir=..., or clear it first by overwrite=true"
        )


def _clear(folder: Path) -> None:
    """Delete what runs write into their folder, and nothing else."""
    for name in (*OTHERS, *RESULTS):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    """Return whether a run has begun in `folder`."""
    return (folder / HYDRA / "config.yaml").is_file()


def said_again(arguments: Sequence[str]) -> list[str]:
    """Return those arguments of a run that `resume=` has to say again."""
    return [argument for argument in arguments if argument.startswith(CODE)]


def existing_run(path: Path) -> Path:
    """Return `path`.

    Raises:
        UserError: it is not the folder of a run.
    """
    if not is_run(path):
        what = "is not the folder of a run" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; a run folder holds .hydra/config.yaml and checkpoints/")
    return path


def split_source(path: Path) -> tuple[Path, int | None]:
    """Split what `checkpoint=` names: a run folder, or `<run folder>/checkpoints/<step>`.

    Returns:
        The run folder, and the step or None.

    Raises:
        UserError: there is no such run or no such checkpoint.
    """
    if path.absolute().parent.name != CHECKPOINTS or not path.name.isdigit():
        return existing_run(path), None
    folder = existing_run(path.absolute().parent.parent)
    if not path.is_dir():
        steps = ", ".join(map(str, saved_steps(folder))) or f"none; the newest is {folder} itself"
        raise UserError(f"{path} does not exist; there are {steps}")
    return folder, int(path.name)


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of a run's checkpoints; unfinished ones, under other names, do not count."""
    names = (path.name for path in (folder / CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; it goes with the process, however that ends.

    Raises:
        UserError: another process trains in `folder`.
    """
    path, flags = folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training in {folder}") from error
        yield


def saved_config(source: Path, overrides: Sequence[str]) -> "DictConfig":
    """Return the config that a run was started with, changed by the overrides of a new command.

    A config of an older version gets today's values for new keys.

    Raises:
        UserError: `source` is no run, its config names what it may not, or an override is not for
            a value of it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import DictConfig, OmegaConf

    folder, _ = split_source(source)
    path = folder / HYDRA / "config.yaml"
    plain = read_mapping(path, _parse)
    if lost := [key for key in ALWAYS if key not in plain]:
        raise UserError(f"{path} is damaged: it has no {', '.join(lost)}\nrestore it from a copy")
    if (today := _composed_today(folder)) is not None:
        plain = up_to_date(plain, today)
    config = OmegaConf.create(plain)
    if config.name is None:
        config.name = folder.resolve().name
    missing = object()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key.partition(".")[0] in COMMAND:
            continue
        value = OmegaConf.select(config, key, default=missing)
        if value is missing or isinstance(value, DictConfig) or override.is_delete():
            problem = "keeps its values" if override.is_delete() else "keeps its choices"
            if value is missing:
                parent, _, name = key.rpartition(".")
                group = OmegaConf.select(config, parent) if parent else config
                siblings = map(str, group) if isinstance(group, DictConfig) else ()
                problem = f"has no such value{suggest(name, siblings)}"
            given = str(override.input_line).lstrip("+")
            raise UserError(
                f"{given}: the config of {folder} {problem}; "
                f"single values can be changed, such as trainer.epochs=20"
            )
        OmegaConf.update(config, key, override.value())
    changed = OmegaConf.to_container(config, resolve=False)
    vet(changed, folder)
    vet_objects(changed, folder)
    return config


def with_found(config: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the config of a run with what the run found in its data, if it has kept that."""
    path = split_source(source)[0] / FOUND
    if "found" not in config["data"] or not path.is_file():
        return config
    return config | {"data": config["data"] | {"found": read_mapping(path)}}


def _parse(text: str) -> Any:
    """Parse YAML as Hydra does."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except OmegaConfBaseException as error:
        raise ValueError(error) from error


def _composed_today(folder: Path) -> dict[str, Any] | None:
    """Compose a run's choices with the configs as they are now, if its folder says the choices."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    if not GlobalHydra.instance().is_initialized():  # no config folder to compose from
        return None
    if (choices := _choices(folder)) is None:
        return None
    try:
        composed: Any = OmegaConf.to_container(compose("config", choices), resolve=False)
    except HydraException as error:  # a choice that was renamed, or is in another --config-dir
        log.warning("the config of %s is taken as it is: %s", folder, str(error).splitlines()[0])
        return None
    return composed


def _choices(folder: Path) -> list[str] | None:
    """Return the choices that the config of a run was composed of, as overrides, if it says."""
    from hydra.core.global_hydra import GlobalHydra

    def found_in(path: Path, *keys: str, kind: type) -> Any:
        advice = "delete it: the config of the run is then taken as it is"
        found: Any = read_mapping(path, lambda text: {"": _parse(text)}, advice)[""]
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, kind):
            what = ".".join(keys) or "list of overrides"
            raise UserError(f"{path} is damaged: it has no {what}\n{advice}")
        return found

    hydra, given = (folder / HYDRA / name for name in ("hydra.yaml", "overrides.yaml"))
    if hydra.is_file():
        chosen = found_in(hydra, "hydra", "runtime", "choices", kind=dict)
        found = [f"{group}={choice}" for group, choice in chosen.items() if choice]
    elif given.is_file():
        found = [str(override) for override in found_in(given, kind=list)]
    else:
        return None
    options = GlobalHydra.instance().config_loader().get_group_options
    groups = {text: text.partition("=")[0].partition("@")[0] for text in found}
    # experiment and debug only change other choices, which are listed too, and values
    skipped = ("experiment", "debug", "hydra") if hydra.is_file() else ("hydra",)
    own = (text for text in found if groups[text].partition("/")[0] not in skipped)
    return [text for text in own if options(groups[text])]


def up_to_date(saved: Mapping, today: Mapping) -> dict[str, Any]:
    """Return a saved config with today's keys, and today's names of code that has moved since.

    Args:
        saved: the config of a run.
        today: what the run's choices compose now.
    """
    gone: list[str] = []

    def merge(saved: Mapping, today: Mapping, path: str) -> dict[str, Any]:
        merged = dict(today)
        for key, value in saved.items():
            if key not in today and not {path.removesuffix("."), f"{path}{key}"} & OPEN:
                gone.append(f"{path}{key}={value}")
            elif isinstance(value, Mapping) and isinstance(today.get(key), Mapping):
                merged[key] = merge(value, today[key], f"{path}{key}.")
            elif not _names_missing_code(value):
                merged[key] = value
        return merged

    merged = merge(saved, today, "")
    if gone:
        log.warning("keys of this run that no longer exist are left out: %s", ", ".join(gone))
    return merged


def _names_missing_code(value: Any) -> bool:
    """Return whether a value names something of this package that does not exist."""
    if not isinstance(value, str) or not value.startswith(f"{PACKAGE}."):
        return False
    try:
        locate(value)
    except UserError:
        return True
    return False
