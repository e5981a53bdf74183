"""W&B's client beyond a run: its account, its service process, and artifacts of other runs."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from experiments.core.config import ARTIFACT
from experiments.errors import UserError

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]


def import_client(folder: Path) -> None:
    """Import the client, which makes temporary folders as it is imported, with these in a folder.

    A process that is killed leaves them behind.
    """
    folder.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        import wandb  # noqa: F401
    finally:
        tempfile.tempdir = before


def usable(mode: str | None) -> Mode:
    """Return `online` if that is wanted and an API key is configured, else `offline`; never ask."""
    import wandb

    settings: dict[str, Any] = {"mode": mode} if mode else {}
    wandb.setup(settings=wandb.Settings(silent=True, **settings))
    if mode == "offline":
        return "offline"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online"
        reason = "no API key is configured (wandb login)"
    except wandb.Error as error:
        reason = first_line(error)
    if mode == "online" or not reason.startswith("no API key"):
        log.warning("W&B stays offline: %s", reason)
    return "offline"


def end_service() -> None:
    """End the service process of the client.

    `finish()` may return before the last bytes are on disk; teardown waits for them. It raises, or
    exits Python, when the service process has died before.
    """
    import wandb

    try:
        wandb.teardown()
    except (Exception, SystemExit):
        os.environ.pop("WANDB_SERVICE", None)  # so that the next run starts a new one


@contextlib.contextmanager
def downloaded(source: str, name: str) -> Iterator[Path]:
    """Yield a folder in whose folder `name` are the files of an artifact, while it is needed.

    Args:
        source: `wandb:entity/project/name:alias`.

    Raises:
        UserError: W&B does not give it.
    """
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        try:
            if usable(None) != "online":
                raise UserError(f"{source}: no API key is configured (wandb login)")
            log.info("%s: downloading", source)
            artifact = wandb.Api().artifact(source.removeprefix(ARTIFACT))
            artifact.download(root=str(Path(folder) / name))
        except (wandb.Error, ValueError, OSError) as error:
            raise UserError(f"{source}: W&B does not give it: {first_line(error)}") from error
        yield Path(folder)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
