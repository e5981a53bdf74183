"""Starting `run.py`: composing its config while other processes already import what they need."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.overrides import MULTIRUN, SWEEPER

if TYPE_CHECKING:
    from omegaconf import DictConfig


def with_config(run: "Callable[[DictConfig], None]", folder: Path) -> None:
    """Call `run` with the config that the command line composes of those in `folder`."""
    import hydra
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("unique"):
        OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True)
    hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(run)()


@contextlib.contextmanager
def workers_ahead(arguments: list[str], config_folder: Path) -> Iterator[None]:
    """Start the workers of a search while Hydra still composes its config.

    Args:
        arguments: as Hydra takes them; without `-m` no workers start.
        config_folder: where the configs of the search are.
    """
    flags = {a for a in arguments if a.startswith("-")}
    if not flags or flags - set(MULTIRUN):  # other flags, such as --cfg, only print something
        yield
        return
    from experiments.search import local
    from experiments.search.command import divide

    given = [a.removeprefix(SWEEPER) for a in arguments if a.startswith(SWEEPER)]
    with local.standing_by(divide(given)[0], config_folder):
        yield
