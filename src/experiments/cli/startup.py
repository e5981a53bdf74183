"""Starting a run: its arguments as Hydra takes them, its config, and the workers of a search."""

import contextlib
import datetime
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.own import config_dir_of
from experiments.cli.pretrained import runs_of_weights, unquoted, with_model_of_run
from experiments.cli.search_keys import NESTED, SEARCH_KEYS, divide
from experiments.cli.sweep import trust_own
from experiments.processes import together
from experiments.search import local

if TYPE_CHECKING:
    from omegaconf import DictConfig

SWEEPER = "+hydra.sweeper.options."  # where Hydra takes keys of the search, such as n_trials
MULTIRUN = ("-m", "--multirun")
FULL_ERROR = "HYDRA_FULL_ERROR"
# what the user says: whether to show tracebacks, here and in the processes that start from here
TRACEBACKS = os.environ.get(FULL_ERROR, "0")
FOLDERS = r"(resume|checkpoint|study|points|from|(\+\+)?model\.pretrained|hydra\.(run|sweep)\.dir)="
SOURCES = ("resume", "checkpoint")
LISTED = r"(?s)pretrain\.overrides=\[.*\]"  # a list of overrides
OVERRIDE = r"[\w~+][^=]*="  # the beginning of one
PLAIN = re.compile(r"|[A-Za-z_][\w./-]*|[\w.-]*/[\w./-]*", re.ASCII)  # what Hydra takes for text


def for_hydra(arguments: list[str]) -> list[str]:
    """Translate the arguments of `run` for Hydra.

    With `-m` the search's own keys go to the sweeper. Several seeds are replicates: a study with
    one trial per seed, side by side. What works on a run does so in its folder.
    """
    # Hydra would read the name of the choice as a number
    arguments = ["debug='nan'" if a == "debug=nan" else a for a in arguments]
    arguments = [_quoted(a) if re.match(FOLDERS, a) else a for a in arguments]
    arguments = [_as_texts(a) if re.fullmatch(LISTED, a) else a for a in arguments]
    arguments = with_model_of_run(arguments)
    several_seeds = any(re.match(r"seed=(range\(|.*,)", a) for a in arguments)
    multirun = any(a in MULTIRUN for a in arguments)
    if multirun and searches_by_hydra(arguments):
        given = any(a.startswith("hydra/sweeper=") for a in arguments)
        others = [a for a in arguments if a not in MULTIRUN]
        return ["-m", *([] if given else ["hydra/sweeper=basic"]), *others]
    if multirun or (several_seeds and not searches_by_hydra(arguments)):
        return _of_search(arguments, side_by_side=several_seeds)
    if any(a.partition("=")[0] in SOURCES for a in arguments):
        # `++`: they are keys of that run's config, which the defaults that Hydra composes may lack
        arguments = [re.sub(r"^(?!hydra\.)(\w+\.[\w.]+=)", r"++\1", a) for a in arguments]
    own = []
    for key, _, source in (a.partition("=") for a in arguments):
        if key not in SOURCES or source in ("", "null"):
            continue
        from experiments.training.run_folder import existing_run, split_source

        path = Path(unquoted(source))  # which must exist: Hydra would make it
        if key == "resume":
            own = [_quoted(f"hydra.run.dir={existing_run(path)}")]
        elif not any(a.startswith("hydra.run.dir=") for a in arguments):
            folder = split_source(path)[0]
            folder = _again(folder) if "mode=reproduce" in arguments else folder
            own = [_quoted(f"hydra.run.dir={folder}")]
    if not own and "mode=evaluate" in arguments:
        own = [_quoted(f"hydra.run.dir={path}") for path in runs_of_weights(arguments)]
    # Hydra takes overrides in one place, before or after flags such as --config-dir
    last = max((i for i, a in enumerate(arguments) if re.match(OVERRIDE, a)), default=-1)
    return [*arguments[: last + 1], *own, *arguments[last + 1 :]]


def _again(folder: Path) -> Path:
    """Return a new folder for what a run did."""
    now, name = datetime.datetime.now(), f"{folder.resolve().name}_again_{uuid.uuid4().hex[:6]}"
    return Path(f"runs/{now:%Y-%m-%d}/{now:%H-%M-%S}_{name}")


def _quoted(argument: str) -> str:
    """Quote the value of an override where Hydra's grammar would not take it as it is."""
    key, _, value = argument.partition("=")
    quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if quotes or "${" in value or PLAIN.fullmatch(value):
        return argument
    from hydra.core.override_parser.types import Quote, QuotedString

    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _as_texts(argument: str) -> str:
    """Quote each override in a list of overrides, whose own quotes a shell may have taken."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, text = argument.partition("=")
    parts, depth = [""], 0
    for sign in text.strip()[1:-1]:
        depth += (sign in "[{(") - (sign in ")}]")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    plain = (p.strip() for p in parts)
    quoted = (p if p[:1] in "'\"" else QuotedString(p, Quote.single).with_quotes() for p in plain)
    return f"{key}=[{','.join(quoted)}]"


def searches_by_hydra(arguments: Iterable[str]) -> bool:
    """Return whether arguments ask for another sweeper than a study, or for a launcher of Hydra's.

    A launcher starts the runs of Hydra's basic sweeper unless another one is given.
    """
    given = [a for a in arguments if a.startswith(("hydra/sweeper=", "hydra/launcher="))]
    return bool(given) and "hydra/sweeper=experiments" not in given


def _of_search(arguments: list[str], side_by_side: bool) -> list[str]:
    if side_by_side and not any(a.startswith("side_by_side=") for a in arguments):
        arguments = [*arguments, "side_by_side=auto"]
    arguments = [a for a in arguments if a not in MULTIRUN]
    for group, key in NESTED.items():
        arguments = [re.sub(f"^{group}=", f"{group}.{key}=", a) for a in arguments]
    own = re.compile(rf"({'|'.join(SEARCH_KEYS)})(\.\w+)?=")
    return ["-m", *(f"{SWEEPER}{a}" if own.match(a) else a for a in arguments)]


def with_config(run: "Callable[[DictConfig], Any]", folder: Path) -> None:
    """Call `run` with the config that the command line composes of those in `folder`."""
    import hydra

    os.environ[FULL_ERROR] = "1"  # else Hydra prints errors in its own way and exits with 1
    hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(run)()


@contextlib.contextmanager
def workers_ahead(arguments: list[str], config_folder: Path) -> Iterator[None]:
    """Start the workers of a search while Hydra still composes its config; without `-m`, none.

    The arguments are as Hydra takes them.
    """
    config_dir, arguments = config_dir_of(arguments)
    flags = {a for a in arguments if a.startswith("-")}
    if flags & set(MULTIRUN):
        together.check_alone("a search")
    options, overrides = divide([a.removeprefix(SWEEPER) for a in arguments])
    options |= {"config_dir": config_dir} if config_dir else {}
    if flags & set(MULTIRUN):
        trust_own(options, overrides, config_folder)
    if (
        not flags or flags - set(MULTIRUN) or searches_by_hydra(overrides)
    ):  # other flags, such as --cfg, only print something
        yield
        return
    with local.standing_by(options):
        yield
