"""The command line's last word: exit codes, and errors in plain lines.

0    the run finished, or stopped early as it was configured to
1    it diverged, or the program failed
2    something that the user can put right
75   it was interrupted and can be resumed
"""

import atexit
import contextlib
import errno
import gc
import logging
import os
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError, suggest
from experiments.training import garbage
from experiments.training.saved import run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra and OmegaConf are imported where they are used: the workers of a search start before that.

EXIT_CODES = {"finished": 0, "stopped_early": 0, "diverged": 1, "failed": 1, "interrupted": 75}

SEARCH_KEYS = (
    *("n_trials", "method", "rounds", "seeds", "storage", "heartbeat", "attempts", "lanes"),
    *("study", "workers", "cluster", "name", "engine"),
)
"""Keys of a command line that are the search's own, in `sweep.py` and after `run.py -m`."""

OPTIONS = "+hydra.sweeper.options."
"""Where Hydra takes them for the sweeper."""

# Python looks through all objects once more as it ends, 0.3 s with JAX; frozen ones it passes over.
# Registered before all others, it is called after them.
atexit.register(gc.freeze)


class Exit(BaseException):
    """Ends the program with an exit code; not an `Exception`, so Hydra does not report it."""

    def __init__(self, code: int):
        self.code = code


@contextlib.contextmanager
def job() -> Iterator[None]:
    """Around what a Hydra main function does: its errors reach `command_line` untouched."""
    try:
        yield
    except Exception as error:
        raise Exit(1) from error


def command_line(main: Callable[[], Any], *, hydra: bool = True) -> int:
    """Calls a main function, by default one of Hydra's; returns the exit code.

    Errors that a user can put right are printed as one or two plain lines, with the nearest valid
    names; `HYDRA_FULL_ERROR=1` shows the traceback of any error.
    """
    garbage.seldom()
    full = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    # Hydra would print its own account of an error and exit with 1; told to raise, it leaves the
    # account to this function
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = False  # a log file on a full disk is no reason for tracebacks
    sys.unraisablehook = _report_unraisable
    try:
        if hydra:
            sys.argv[1:] = for_hydra(sys.argv[1:])
        main()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (Exit, Exception) as ended:
        error: BaseException = ended
        if isinstance(ended, Exit):
            if ended.__cause__ is None:
                return ended.code
            error = ended.__cause__
        message = explain(error)
        if full or message is None:
            traceback.print_exception(error)
            return 1 if message is None else 2
        print(message, file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def workers_ahead(arguments: list[str], config_folder: Path) -> Iterator[None]:
    """Within it the workers of a search have started, while Hydra still composes its config.

    Args:
      arguments: in Hydra's terms; those that search over nothing start no workers.
    """
    flags = {a for a in arguments if a.startswith("-")}
    if not flags or flags - {"-m", "--multirun"}:  # others only show something
        yield
        return
    from experiments.search import local
    from experiments.search.options import divide

    given = [a.removeprefix(OPTIONS) for a in arguments if a.startswith(OPTIONS)]
    with local.workers_ahead(divide(given)[0], config_folder):
        yield


def with_config(run: "Callable[[DictConfig], None]", folder: Path) -> None:
    """Calls `run` with the config that the command line makes of those in `folder`."""
    import hydra
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("unique"):
        OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True)
    hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(run)()


def warm_up(config: "DictConfig") -> None:
    """Has the process beside a run import what it will need, while this one imports JAX."""
    from experiments.ops import library

    library.begin()
    if config.mode not in ("train", "figures") or config.cluster:
        return
    if os.environ.get("JAX_PROCESS_ID", "0") != "0":
        return
    from omegaconf import OmegaConf

    from experiments.tracking import choice
    from experiments.training.helper import helper
    from experiments.viz import drawing

    with contextlib.suppress(Exception):  # which the run will meet, and explain
        if config.trainer.figures or config.mode == "figures":
            helper().submit("drawing", drawing.warm_up)
        if config.mode == "train":
            choice.warm_up(OmegaConf.to_container(config.logger, resolve=True))  # type: ignore[arg-type]


def _report_unraisable(unraisable: Any) -> None:
    """As Python would, but for what TensorStore says once Orbax has given up a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def for_hydra(arguments: list[str]) -> list[str]:
    """The arguments in Hydra's terms: a resumed run stays in its folder, `nan` is a name.

    With `-m` the search's own keys, such as n_trials, go to the sweeper. Several seeds are
    replicates: a study of one trial a seed, side by side.

    Of several processes that train together only the first one writes.
    """
    arguments = ["debug='nan'" if a == "debug=nan" else a for a in arguments]
    if any(re.match(r"seed=(range\(|.*,)", a) for a in arguments):
        together = [] if any(a.startswith("lanes=") for a in arguments) else ["lanes=auto"]
        arguments = ["-m", *(a for a in arguments if a not in ("-m", "--multirun")), *together]
    if flags := [a for a in arguments if a in ("-m", "--multirun")]:
        arguments = [a for a in arguments if a not in flags]  # argparse wants them in one place
        arguments = [re.sub("^cluster=", "cluster.name=", a) for a in arguments]
        own = re.compile(rf"({'|'.join(SEARCH_KEYS)})(\.\w+)?=")
        return [flags[0], *(f"{OPTIONS}{a}" if own.match(a) else a for a in arguments)]
    if os.environ.get("JAX_PROCESS_ID", "0") != "0":
        arguments += ["hydra.output_subdir=null", "hydra/job_logging=disabled"]
    if any(a.startswith(("resume=", "checkpoint=")) for a in arguments):
        # keys of that run's config, which the defaults that Hydra composes need not have
        arguments = [re.sub(r"^(\w+\.[\w.]+=)", r"++\1", a) for a in arguments]
        arguments = [a.removeprefix("++") if a.startswith("++hydra.") else a for a in arguments]
    folder = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), "null")
    if folder in ("null", ""):
        return arguments
    run_folder(Path(folder))  # before Hydra makes it
    return [*arguments, f"hydra.run.dir={folder}", "hydra.output_subdir=null"]


def explain(error: BaseException) -> str | None:
    """What to tell the user, or None for an error of the program."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    for cause in _causes(error):
        if isinstance(cause, UserError):
            return f"error: {cause}"
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            return f"error: {_missing_choice(cause)}"
        if isinstance(cause, OverrideParseException):
            return f"error: {cause.override}: this cannot be read as key=value ({cause})"
        if isinstance(cause, OSError) and cause.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            where = f": {cause.filename}" if cause.filename else ""
            advice = "; choose another folder with hydra.run.dir=..."
            return f"error: {os.strerror(cause.errno)}{where}{advice}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"error: {_bad_override(str(error))}"
    return None


def _causes(error: BaseException | None) -> Iterable[BaseException]:
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def _missing_choice(error: Any) -> str:
    group, _, choice = error.missing_cfg_file.rpartition("/")
    options = [option for option in error.options or [] if not option.startswith("_")]
    if not options:
        return f"there is no config {error.missing_cfg_file!r}"
    return (
        f"{group}={choice}: there is no such choice{suggest(choice, options)}\n"
        f"{group} can be {', '.join(options)}"
    )


def _bad_override(message: str) -> str:
    """Hydra's first line, with the nearest valid keys where a key is wrong."""
    first = message.strip().splitlines()[0]
    match = re.search(r"Could not override '([^']+)'", message)
    if match is None:
        return first
    key = match.group(1).partition("@")[0]
    parent, _, last = key.rpartition(".")
    keys = _valid_keys()
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    near = suggest(last, siblings) if parent else ""
    if near and parent:
        near = re.sub(r"'([^']+)'", rf"'{parent}.\1'", near)
    searches = "-m" in sys.argv or os.path.basename(sys.argv[0]) == "sweep.py"
    near = near or suggest(key, [*keys, *(SEARCH_KEYS if searches else ())])
    return f"{key}: there is no such key{near}"


def _valid_keys() -> list[str]:
    """The keys and groups of the config that the rest of the command line describes."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from experiments.core.config import leaves

    choices = [a for a in sys.argv[1:] if re.fullmatch(r"[a-z_]+=[\w.\-]+", a)]
    config_dir = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "conf")
    for overrides in (choices, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir, version_base="1.3"):
                config = compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException):
            continue  # the misspelt name may be among the choices
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        paths = [path for path, _ in leaves(plain)]
        return [*plain, *(p for p in paths if "." in p)]
    return []
