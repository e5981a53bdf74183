"""From the arguments that a user types to those that Hydra takes."""

import os
import re
from pathlib import Path

SWEEPER = "+hydra.sweeper.options."
"""The key of Hydra's config that takes the keys for the search, such as n_trials."""

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
    if os.environ.get("JAX_PROCESS_ID", "0") != "0":  # the first of several processes writes
        arguments = [*arguments, "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    if any(a.startswith(("resume=", "checkpoint=")) for a in arguments):
        # `++`: they are keys of that run's config, which the defaults that Hydra composes may lack
        arguments = [re.sub(r"^(?!hydra\.)(\w+\.[\w.]+=)", r"++\1", a) for a in arguments]
    folder = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), "null")
    if folder in ("null", ""):
        return arguments
    from experiments.training.run_folder import run_folder

    run_folder(Path(folder))  # which must exist: Hydra would make it
    return [*arguments, f"hydra.run.dir={folder}", "hydra.output_subdir=null"]


def _of_search(arguments: list[str], side_by_side: bool) -> list[str]:
    from experiments.search.command import SEARCH_KEYS

    if side_by_side and not any(a.startswith("side_by_side=") for a in arguments):
        arguments = [*arguments, "side_by_side=auto"]
    arguments = [re.sub("^cluster=", "cluster.name=", a) for a in arguments if a not in MULTIRUN]
    own = re.compile(rf"({'|'.join(SEARCH_KEYS)})(\.\w+)?=")
    return ["-m", *(f"{SWEEPER}{a}" if own.match(a) else a for a in arguments)]
