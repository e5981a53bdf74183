"""Error messages for the user, with the nearest valid names."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml.error import MarkedYAMLError

from experiments.cli.own import config_dir_of
from experiments.cli.search_keys import RENAMED, SEARCH_KEYS
from experiments.errors import UserError, causes, out_of_memory, refusal_of_jax, suggest
from experiments.machine import CONFIG, called
from experiments.search.configs import Configs

FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, of which the system names no file


def explain(error: BaseException, arguments: Sequence[str] | None = None) -> str | None:
    """Return one or two lines for the user, or None for an error of the program.

    Args:
        arguments: those that a config was composed of; None: of the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for cause in causes(error):
        if isinstance(cause, UserError):
            return f"error: {cause}"
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            return f"error: {_missing_choice(cause, arguments)}"
        if isinstance(cause, ValueError) and str(cause).startswith("Config group override"):
            return f"error: {_no_choice(arguments)}"
        if isinstance(cause, OverrideParseException):
            given = _as_given(str(cause.override))
            return f"error: {given}: this cannot be read as key=value ({cause})"
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
            mark = cause.problem_mark
            return f"error: {mark.name}, line {mark.line + 1}: {cause.problem}"
        if cause is not error and isinstance(cause, FileNotFoundError):
            continue  # an error in what is done where a file is missing is the program's own
        if (reason := refusal_of_jax(cause) or out_of_memory(cause)) is not None:
            return f"error: {reason}"
        if isinstance(cause, OSError) and (cause.filename is not None or cause.errno in FULL):
            where = f": {cause.filename}" if cause.filename else ""
            return f"error: {os.strerror(cause.errno or 0)}{where}; choose another path"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"error: {_bad_override(str(error), arguments)}"
    return None


PLUGINS = {
    "joblib": "pip install hydra-joblib-launcher",
    "submitit_local": "pip install hydra-submitit-launcher",
    "submitit_slurm": "pip install hydra-submitit-launcher",
    "optuna": "pip install --no-deps hydra-optuna-sweeper",  # else it brings an old Optuna
}
"""What adds choices of `hydra/launcher` and `hydra/sweeper`."""


def _missing_choice(error: MissingConfigException, arguments: Sequence[str]) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    # of a list of choices, logger=[csv,wandb], Hydra does not say what there is
    known = Configs(CONFIG, (), config_dir_of(arguments)[0]).groups.get(group, [])
    options = [option for option in error.options or known if not option.startswith("_")]
    parent, _, nested = group.partition("/")
    if nested and (CONFIG / group).is_dir() and parent != "hydra":  # experiment=lesson/xor
        names = sorted(path.stem for path in (CONFIG / group).glob("[!_]*.yaml"))
        group, choice = parent, f"{nested}/{choice}"
        options = [f"{nested}/{name}" for name in names]
    if not options:
        return f"there is no config {error.missing_cfg_file!r}"
    more = f"; {PLUGINS[choice]} adds {choice}" if choice in PLUGINS else ""
    return (
        f"{group}={choice}: there is no such choice{suggest(choice, options)}\n"
        f"{group} can be {', '.join(options)}{more}"
    )


def _no_choice(arguments: Sequence[str]) -> str:
    """Return what is wrong where Hydra got a number, a truth value or null for a choice."""
    groups = Configs(CONFIG, (), config_dir_of(arguments)[0]).groups
    for argument in arguments:
        key, _, value = argument.partition("=")
        if not key:
            return f"{argument}: the key before = is missing"
        if key in groups and not isinstance(yaml.safe_load(value), str):
            options = [option for option in groups[key] if not option.startswith("_")]
            return f"{argument}: there is no such choice\n{key} can be {', '.join(options)}"
    return "a choice of a group is a name"


def _as_given(override: str) -> str:
    """Return an override without what was put before its key for Hydra."""
    return re.sub(r"^\+{1,2}(hydra\.sweeper\.options\.)?", "", override)


def _bad_override(message: str, arguments: Sequence[str]) -> str:
    """Return Hydra's first line, or where a key is wrong the nearest valid keys."""
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", message):
        return f"{_as_given(several[1])}: to search over several values say -m; a list is key=[a,b]"
    match = re.search(r"Could not override '([^']+)'", message)
    if match is None:
        return message.strip().splitlines()[0]
    key = match.group(1).partition("@")[0]
    parent, _, last = key.rpartition(".")
    searches = "-m" in arguments or Path(sys.argv[0]).name == "sweep.py"
    if (own := RENAMED.get(key, key)) in SEARCH_KEYS and not searches:
        now = f"now {own}, " if own != key else ""
        return f"{key}: {now}a key of searches; say -m: {called('run')} -m optim=adam,sgd {own}=..."
    config_dir, _ = config_dir_of(arguments)
    if elsewhere := Configs(CONFIG, (), config_dir).elsewhere(key):
        return f"{key}: {elsewhere}"
    keys = _valid_keys(arguments)
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    near = suggest(last, siblings) if parent else ""
    group, _, inside = key.partition(".")
    choice = next((a for a in arguments[::-1] if a.startswith(f"{group}=")), None)
    of_group = {k.split(".")[1] for k in keys if k.startswith(f"{group}.")}
    if choice and inside and not suggest(inside.partition(".")[0], of_group):
        return f"{key}: there is no such key: {choice} has no {inside.partition('.')[0]}"
    if near:
        near = re.sub(r"'([^']+)'", rf"'{parent}.\1'", near)
    else:
        keys += SEARCH_KEYS
        near = suggest(own, keys)
    return f"{key}: there is no such key{near or suggest(key, keys)}"


def _valid_keys(arguments: Sequence[str]) -> list[str]:
    """Return the keys and groups of the config that the other arguments describe."""
    choices = [a for a in arguments if re.fullmatch(r"[a-z_]+=[\w.\-/]+", a)]
    config_dir, _ = config_dir_of(arguments)
    for overrides in (choices, []):  # the misspelt name may be among the choices
        with contextlib.suppress(HydraException, OmegaConfBaseException):
            configs = Configs(CONFIG, overrides, config_dir)
            return sorted({*configs.paths({}), *configs.groups})
    return []
