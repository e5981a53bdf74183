"""A run folder: its lock and what is in it.

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
import functools
import operator
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.core.config import Dumper
from experiments.errors import UserError
from experiments.machine import remove_parts, write_whole
from experiments.tracking import provenance
from experiments.tracking.jsonl import METRICS, SUMMARY
from experiments.tracking.log_file import LOG

CHECKPOINTS = "checkpoints"
HYDRA = ".hydra"
FOUND = "data.json"  # what was found in the data of the user's own
INSPECTION = "inspect"  # the folder of what mode=inspect finds
EVALUATIONS = "evaluations"  # the folder of what mode=evaluate finds

COMMAND = (
    *("mode", "resume", "checkpoint", "input", "overwrite", "cluster", "nodes", "allow"),
    *("metric", "folders"),
)
"""Keys of a command, not of the run that it names."""

CODE = ("allow=", "trainer.compilation_cache=")
"""Keys that are never taken from a run folder, since they decide which code runs."""

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
            write_whole(folder / HYDRA / f"{name}.yaml", _dumped(record[name]))
        yield


def note_value(folder: Path, key: str, value: Any) -> None:
    """Note in the config of a run a value that was found as it began; `key` is dotted."""
    path = folder / HYDRA / "config.yaml"
    config = yaml.safe_load(path.read_text())
    *groups, name = key.split(".")
    functools.reduce(operator.getitem, groups, config)[name] = value
    write_whole(path, _dumped(config))


def _dumped(content: Any) -> str:
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


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
        what = "is not the folder of a run" if path.exists() else "does not exist"
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
