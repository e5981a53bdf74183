"""The config of an earlier run."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.errors import UserError, suggest

OWN = ("mode", "resume", "checkpoint")  # keys of the command, not of the run that it names


def run_folder(path: Path) -> Path:
    """The folder of a run; raises `UserError` if it is none."""
    if not (path / ".hydra" / "config.yaml").is_file():
        what = "is not the folder of a run" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; a run folder holds .hydra/config.yaml and checkpoints/")
    return path


def saved_config(folder: Path, overrides: list[str]) -> DictConfig:
    """The config that a run was started with, and over it the values given now.

    Raises:
        UserError: `folder` is no run, or an override is not the value of a key of its config.
    """
    config = OmegaConf.load(run_folder(folder) / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    if config.name is None:
        config.name = folder.resolve().name
    for override in overrides:
        key, _, value = override.partition("=")
        if key in OWN:
            continue
        current = OmegaConf.select(config, key, default=OWN)
        if current is OWN or isinstance(current, DictConfig):
            keys = [str(k) for k in config]
            raise UserError(
                f"{override}: the config of {folder} has no such value{suggest(key, keys)}; "
                f"single values can be changed, such as trainer.epochs=20"
            )
        OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
    return config
