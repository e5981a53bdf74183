"""The keys of a search: what they do, and their values on a command line."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from experiments.errors import UserError

Options = dict[str, Any]

WIDTH = 36  # of the examples in the help

SEARCH_HELP = {
    "n_trials=64": "the budget, whoever runs the trials; without it all combinations of lists",
    "method=random": "or grid, quasi_random, bayes, gp, cmaes, narrow",
    "rounds=3 shrink=0.5": "of narrow: so many rounds, each with this share of the range before",
    "metric=val/macro_f1": "what is searched for; the metric of the best epoch unless given",
    "goal=maximize": "or minimize; what suits the metric unless given",
    "metric=[val/accuracy,parameters]": "several, with goal=[maximize,minimize]: the front of all "
    "trials that no other one beats in each; also seconds",
    "early_terminate=hyperband": "end trials that fall behind: of all that came as far the best "
    "third goes on; or median: those below the median of finished trials; or none",
    "early_terminate.min_epochs=3": "the least of a trial; with hyperband the first rung, and "
    "early_terminate.eta=3 the next one over it",
    "seeds=3": "runs of each trial; their median counts",
    "points=file.csv": "values to start from: a column a key, a row a trial; or a results.csv",
    "from=<study folder>": "start from the best trials of another study",
    "side_by_side=auto": "trials that a worker trains at once, as one program; or their number",
    "workers=2": "processes; auto: as many as the GPUs of this machine allow",
    "gpus_per_worker=2": "otherwise one; workers that have one in common share its memory",
    "cluster=slurm": "where the workers run, with cluster.partition=... and the like",
    "engine=wandb": "of a sweep file: W&B's server draws the values, and workers are its agents",
    "study=<folder> name=...": "where the study goes, and its name in storage and in W&B",
    "storage=<database URL>": "in the place of a journal in the folder; env: EXPERIMENTS_STORAGE",
    "heartbeat=60 attempts=3": "seconds until a silent worker counts as dead; deaths at one trial",
    "allow=[mypackage]": "packages that the configs may name",
    "retry=failed": "with resume=<study folder>: run trials that failed again",
}
"""What the keys of a search do, in `sweep` and after `run -m`, by an example of each."""

VALUES_HELP = {
    "optim=adam,sgd": "choices; optim.b1=0.8,0.9 beside it is drawn for those that have it",
    "model.hidden=[64],[64,32]": "values of any kind: lists, true,false, null",
    "optim.learning_rate=tag(log,interval(1e-5,1e-1))": "a range, on a logarithmic scale",
    "model.dropout=interval(0,0.5)": "on a linear one",
    "data.batch_size=int(tag(log,interval(8,512)))": "whole numbers",
    "data.batch_size=int(tag(log,q8,interval(8,512)))": "multiples of 8; q0.1 of 0.1",
    "seed=range(8)": "0 to 7",
    "model=glob(vgg*)": "every choice of such a name",
}
"""The values that `run -m` searches over: Hydra's grammar, in quotes for the shell."""

SEARCH_KEYS = tuple(dict.fromkeys(re.findall(r"(\w+)(?:\.\w+)?=", " ".join(SEARCH_HELP))))
NESTED = {"cluster": "name", "early_terminate": "type"}  # keys with keys, and the one meant by `=`
PATHS = ("study", "points", "from")  # keys whose values are no YAML

RENAMED = {"lanes": "side_by_side"}  # older names of such keys


def search_help() -> str:
    """Return the keys of a search and the values that it searches over, as `--help` prints them."""
    parts = []
    for title, lines in (
        ("Keys of a search, after run -m and for sweep", SEARCH_HELP),
        ("Values of a search after run -m, in quotes for the shell", VALUES_HELP),
    ):
        parts.append(f"{title}:\n")
        for example, text in lines.items():
            first, *others = textwrap.wrap(text, 96 - WIDTH)
            apart = "\n" + " " * (WIDTH + 4) if len(example) > WIDTH else ""
            parts += [f"    {example:<{WIDTH}}{apart}{first}"]
            parts += [" " * (WIDTH + 4) + other for other in others]
        parts.append("")
    return "\n".join(parts)


def divide(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Divide arguments into the search's own and overrides of the config.

    Returns:
        The values of the search's own keys, where `cluster.<key>` joins `cluster`, and the rest.
    """
    options: Options = {}
    overrides = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        group, _, inner = key.partition(".")
        if not equals or group not in SEARCH_KEYS or (inner and group not in NESTED):
            overrides.append(argument)
            continue
        try:  # a folder may have a name that is no YAML
            value = text if key in PATHS else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{argument}: {text!r} cannot be read") from error
        if group in NESTED:
            options.setdefault(group, {})[inner or NESTED[group]] = value
        else:
            options[key] = value
    return options, overrides
