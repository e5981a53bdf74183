"""Starting `run.py`: its arguments as Hydra takes them, its config, and the workers of a search."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.sweep import SEARCH_KEYS, divide
from experiments.search import local

if TYPE_CHECKING:
    from omegaconf import DictConfig

SWEEPER = "+hydra.sweeper.options."  # where Hydra takes keys of the search, such as n_trials
MULTIRUN = ("-m", "--multirun")


def for_hydra(arguments: list[str]) -> list[str]:
    """Translate the arguments of `run.py` for Hydra.

    With `-m` the search's own keys go to the sweeper. Several seeds are replicates: a study with
    one trial per seed, side by side. A resumed run stays in its folder.
    """
    # Hydra would read the name of the choice as a number
    arguments = ["debug='nan'" if a == "debug=nan" else a for a in arguments]
    several_seeds = any(re.match(r"seed=(range\(|.*,)", a) for a in arguments)
    if several_seeds or any(a in MULTIRUN for a in arguments):
        return _of_search(arguments, side_by_side=several_seeds)
    if os.environ.get("JAX_PROCESS_ID", "0") != "0":  # the first of several processes prints
        arguments = [*arguments, "hydra/job_logging=disabled"]
    if any(a.startswith(("resume=", "checkpoint=")) for a in arguments):
        # `++`: they are keys of that run's config, which the defaults that Hydra composes may lack
        arguments = [re.sub(r"^(?!hydra\.)(\w+\.[\w.]+=)", r"++\1", a) for a in arguments]
    folder = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), "null")
    if folder in ("null", ""):
        return arguments
    from experiments.training.run_folder import existing_run

    existing_run(Path(folder))  # which must exist: Hydra would make it
    return [*arguments, f"hydra.run.dir={folder}"]


def _of_search(arguments: list[str], side_by_side: bool) -> list[str]:
    if side_by_side and not any(a.startswith("side_by_side=") for a in arguments):
        arguments = [*arguments, "side_by_side=auto"]
    arguments = [re.sub("^cluster=", "cluster.name=", a) for a in arguments if a not in MULTIRUN]
    own = re.compile(rf"({'|'.join(SEARCH_KEYS)})(\.\w+)?=")
    return ["-m", *(f"{SWEEPER}{a}" if own.match(a) else a for a in arguments)]


def with_config(run: "Callable[[DictConfig], None]", folder: Path) -> None:
    """Call `run` with the config that the command line composes of those in `folder`."""
    import hydra
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("unique"):
        OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True)
    hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(run)()


@contextlib.contextmanager
def workers_ahead(arguments: list[str], config_folder: Path) -> Iterator[None]:
    """Start the workers of a search while Hydra still composes its config; without `-m`, none.

    The arguments are as Hydra takes them.
    """
    flags = {a for a in arguments if a.startswith("-")}
    if not flags or flags - set(MULTIRUN):  # other flags, such as --cfg, only print something
        yield
        return
    given = [a.removeprefix(SWEEPER) for a in arguments if a.startswith(SWEEPER)]
    with local.standing_by(divide(given)[0], config_folder):
        yield
