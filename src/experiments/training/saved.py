"""The folder of an earlier run."""

from pathlib import Path

from experiments.errors import UserError

CHECKPOINTS = "checkpoints"


def run_folder(path: Path) -> Path:
    """The folder of a run; raises `UserError` if it is none."""
    if not (path / ".hydra" / "config.yaml").is_file():
        what = "is not the folder of a run" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; a run folder holds .hydra/config.yaml and checkpoints/")
    return path


def saved_steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints of a run; one that is being written has another name."""
    names = (path.name for path in (folder / CHECKPOINTS).glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def split_source(path: Path) -> tuple[Path, int | None]:
    """What `checkpoint=` names: a run folder and, for `<run folder>/checkpoints/<step>`, a step."""
    if path.absolute().parent.name != CHECKPOINTS or not path.name.isdigit():
        return run_folder(path), None
    folder = run_folder(path.absolute().parent.parent)
    if not path.is_dir():
        steps = ", ".join(map(str, saved_steps(folder)))
        raise UserError(f"{path} does not exist; there are {steps}")
    return folder, int(path.name)
