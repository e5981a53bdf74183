"""`mode=reproduce`: do a run once more, by the code that it was started with, and compare."""

import contextlib
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.core import trust
from experiments.core.config import build
from experiments.errors import EXIT_CODES, Exit, UserError
from experiments.machine import CONFIG, StopRequest, command, launched_here
from experiments.tracking import provenance
from experiments.tracking.jsonl import (
    METRICS,
    NON_FINITE,
    SUMMARY,
    read_history,
    read_mapping,
    write_json,
)
from experiments.tracking.wandb_names import flatten
from experiments.training.run_folder import CODE, COMMAND, HYDRA, check_unused, split_source
from experiments.types import NonNegative

COMPARED = "reproduction.json"
TIMES = ("examples_per_second", "seconds", "wandb", "mlflow")  # what is never the same twice
ABOUT = ("processor", "devices", "python", "data")  # of a start, and its packages
ENDED = ("finished", "stopped_early", "diverged")  # statuses that a run comes to by itself
POLL = 0.2  # seconds between looks at signals
SHOWN = 10  # most lines about one kind of difference
ROUNDING = 1e-3  # a relative difference that other processors may make

Values = dict[str, dict[int, Any]]  # of each metric by step; of a summary there is one step, -1


@dataclass(frozen=True)
class Reproduce:
    """The keys of `reproduce`.

    Args:
        tolerance: largest relative difference of two values that counts as none.
    """

    tolerance: NonNegative


def main(config: dict[str, Any], directory: Path, source: Path) -> None:
    """Train in `directory` what the run `source` did, in worktrees of its code; print the outcome.

    All that the two have recorded but times is compared, which `reproduction.json` says.

    Raises:
        Exit: they differ, or the training was interrupted.
        UserError: the code cannot be had, or does not train.
    """
    wanted: Reproduce = build(config["reproduce"])
    run, _ = split_source(source)
    if config["mode"] != "train":
        raise UserError(f"{run} is of mode={config['mode']}; mode=reproduce is for a training")
    check_unused(directory)
    starts = provenance.read_starts(run)
    code = starts[0]["code"] if starts else []
    if not code:
        raise UserError(f"{run} cannot be reproduced: it does not say which commit its code is of")
    here = [Path(one["folder"]) for one in provenance.begin().result().fields["code"]]
    found = [(_repository(one["commit"], here, one["folder"]), one) for one in code]
    patches = [_patch(run, one) for one in code]
    _check_trusted(list(filter(None, patches)))
    with contextlib.ExitStack() as stack:
        trees = {
            folder: stack.enter_context(_worktree(folder, one["commit"], patch))
            for (folder, one), patch in zip(found, patches, strict=True)
        }
        shutil.copytree(run / HYDRA, directory / HYDRA, dirs_exist_ok=True)
        exit_code = _train(trees, directory, _overrides(starts, config))
    if exit_code == EXIT_CODES["interrupted"]:
        raise Exit(exit_code)
    if not (directory / SUMMARY).is_file():
        raise UserError(f"the code of {run} does not train it: exit code {exit_code}, see above")
    outcome = compare(run, directory, wanted.tolerance)
    write_json(directory / COMPARED, {"run": str(run)} | outcome)
    _print(code, outcome, wanted.tolerance)
    print(f"written to {directory / COMPARED}")
    if not outcome["equal"]:
        raise Exit(1)


# ---------------------------------------------------------------------- the code


def _repository(commit: str, here: Iterable[Path], folder: str) -> Path:
    """Return that one of the repositories here which has a commit.

    Only the user's own are asked: a run folder may name any folder as that of its code.
    """
    if re.fullmatch("[0-9a-f]{40,64}", commit):
        for own in here:
            if _git(own, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
                return own
    raise UserError(
        f"no repository here has the commit {commit}, which the run began with in {folder}\n"
        "fetch it, and say this in the folder that the run was started in"
    )


def _patch(run: Path, code: Mapping[str, Any]) -> Path | None:
    """Return the patch with what no commit has; raise `UserError` if it is not there."""
    if not code["changed"]:
        return None
    if code["patch"] is None:
        raise UserError(f"{run} began with changes to {code['folder']} too large to be recorded")
    path = run / provenance.PATCHES / Path(code["patch"]).name
    if not path.is_file() or provenance.name_of_patch(path.read_bytes()) != path.name:
        raise UserError(f"{path} is damaged or gone: without it the run cannot be reproduced")
    return path


def _check_trusted(patches: list[Path]) -> None:
    """Check that the changes of patches are here as well, or allowed; raise `UserError`."""
    here = provenance.begin().result().patches
    others = [path for path in patches if path.name not in here and not trust.allows(path.name)]
    if others:
        names = ",".join(path.name for path in others)
        raise UserError(
            f"{', '.join(map(str, others))}: changes that no commit has, and a patch is code\n"
            f"look at it, and if you trust it: allow=[{names}]"
        )


@contextlib.contextmanager
def _worktree(folder: Path, commit: str, patch: Path | None) -> Iterator[Path]:
    """Yield a worktree of a repository at a commit, with a patch applied; it is removed again."""
    with tempfile.TemporaryDirectory(prefix="reproduce-") as temporary:
        tree = Path(temporary).resolve() / folder.name
        try:
            _do(folder, "worktree", "add", "--detach", str(tree), commit)
            if patch is not None:
                _do(tree, "apply", "--whitespace=nowarn", str(patch.absolute()))
            yield tree
        finally:
            _git(folder, "worktree", "remove", "--force", str(tree))


def _do(folder: Path, *arguments: str) -> None:
    if (done := _git(folder, *arguments)).returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"git {arguments[0]} in {folder}: {said[-1]}")


def _git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["git", "-c", f"core.hooksPath={os.devnull}", "-C", str(folder), *arguments]
    own = provenance.environment_of_git()
    return subprocess.run(command, env=own, capture_output=True, text=True, errors="replace")


# ---------------------------------------------------------------------- the training


def _overrides(starts: list[dict[str, Any]], config: Mapping[str, Any]) -> list[str]:
    """Return the values that were changed when the run was resumed, and by this command."""
    from hydra.core.hydra_config import HydraConfig  # here, as every run checks `Reproduce`

    later = [shlex.split(start["command"]) for start in starts[1:]]
    resumed = [parts for parts in later if any(part.startswith("resume=") for part in parts)]
    said = [part for parts in resumed for part in parts if not part.startswith(CODE)]
    known = [name for name in flatten(config) if name.partition(".")[0] != "reproduce"]
    chosen = {}
    for override in (*said, *HydraConfig.get().overrides.task):
        name = override.partition("=")[0].lstrip("+")
        if name in known and name.partition(".")[0] not in COMMAND:
            chosen[name] = override.lstrip("+")
    return list(chosen.values())


def _train(trees: Mapping[Path, Path], directory: Path, overrides: list[str]) -> int:
    """Train in a folder by the code of worktrees, each by the repository it is of; return the code.

    The process works in this folder, where the data are that the config may name.
    """

    def there(path: Path) -> Path | None:
        inside = (tree / path.relative_to(r) for r, tree in trees.items() if path.is_relative_to(r))
        return next(inside, None)

    environment = os.environ | launched_here()
    package, own = there(CONFIG.parent), [f for f in trust.own_folders() if f != CONFIG]
    if package is not None and CONFIG.parent in trees:
        paths = [str(package / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    code = there(Path.cwd())
    flags = [f"--config-dir={there(folder.resolve()) or folder}" for folder in own]
    if not own and code is not None and code != package and code.is_dir():
        (code / "conf").mkdir(exist_ok=True)  # beside which code is looked for first
        flags = [f"--config-dir={code / 'conf'}"]
    arguments = [f"resume={directory}", *trust.arguments(), *overrides, *flags]
    run = [*command("run"), *arguments]
    with StopRequest() as stop, subprocess.Popen(run, env=environment) as process:
        while stop.name is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
        process.terminate()
        return process.wait()


# ---------------------------------------------------------------------- the comparison


def compare(run: Path, again: Path, tolerance: float) -> dict[str, Any]:
    """Compare what two runs have recorded, but for times, and what they were started with.

    Of a run that was ended from outside that is as much as it came to.
    """
    old, new = values_of(run), values_of(again)
    summary = run / SUMMARY
    whole = summary.is_file() and read_mapping(summary).get("status") in ENDED
    differences, compared = [], 0
    for name, steps in old.items():
        pairs = {s: (v, new.get(name, {}).get(s)) for s, v in steps.items()}
        if not whole:
            pairs = {s: pair for s, pair in pairs.items() if s >= 0 and pair[1] is not None}
        compared += len(pairs)
        apart = {step: _apart(*pair) for step, pair in pairs.items()}
        if beyond := [step for step in pairs if apart[step] > tolerance]:
            (there, here), most = pairs[beyond[0]], max(apart.values())
            first = None if beyond[0] < 0 else beyond[0]
            found = {"name": name, "step": first, "there": there, "here": here}
            differences.append(found | {"relative_difference": most})
    return {
        "equal": bool(compared) and not differences,
        "values": compared,
        "whole": whole,
        "differences": differences,
        "surroundings": _surroundings(run, again),
    }


def _surroundings(run: Path, again: Path) -> dict[str, list[Any]]:
    """Return what was otherwise as two runs began: versions of packages, the machine, the data."""
    starts = [provenance.read_starts(one)[0] for one in (run, again)]
    said = [one["packages"] | {name: one.get(name) for name in ABOUT} for one in starts]
    pairs = {name: [one.get(name) for one in said] for name in (*ABOUT, *(said[0] | said[1]))}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def values_of(run: Path) -> Values:
    """Return all that a run has recorded but times."""
    found: Values = {}
    for event in read_history(run / METRICS):
        step = int(event.pop("step"))
        for name, value in event.items():
            found.setdefault(name, {})[step] = value
    if (path := run / SUMMARY).is_file():
        for name, value in flatten(read_mapping(path)).items():
            found[f"{SUMMARY}: {name}"] = {-1: float(value) if value in NON_FINITE else value}
    return {k: v for k, v in found.items() if not re.split(r"[. ]", k)[-1].startswith(TIMES)}


def _apart(there: Any, here: Any) -> float:
    """Return the relative difference of two values; of what is no number 0 or infinity."""
    if there == here or (there != there and here != here):  # NaN and NaN
        return 0.0
    if isinstance(there, int | float) and isinstance(here, int | float):
        largest = max(abs(there), abs(here))
        return abs(there - here) / largest if math.isfinite(there - here) else math.inf
    return math.inf


def _print(code: list[dict[str, Any]], outcome: Mapping[str, Any], tolerance: float) -> None:
    print()
    for one in code:
        print(f"code        {provenance.code_in_brief(one)}")
        if one["untracked"]:
            print(f"            git did not know {', '.join(one['untracked'][:SHOWN])}")
    for name, (there, here) in list(outcome["surroundings"].items())[:SHOWN]:
        print(f"other       {name}: {there}, here {here}")
    within = "" if tolerance == 0 else f" within {tolerance:g}"
    part = "" if outcome["whole"] else ", as far as it came"
    differing = outcome["differences"]
    for one in differing[:SHOWN]:
        step = "" if one["step"] is None else f" from step {one['step']} on"
        apart = f", by {one['relative_difference']:.2g} of it at most"
        values = f"{one['there']!s:.60}, here {one['here']!s:.60}"
        print(f"differs     {one['name']}{step}: {values}{apart}")
    if differing:
        print(f"            {len(differing)} in all, of {outcome['values']} values{part}")
        if (most := max(one["relative_difference"] for one in differing)) < ROUNDING:
            print("            as by rounding: of another processor, or of trials side by side")
            print(f"            to count that as none: reproduce.tolerance={most * 2:.0e}")
    else:
        print(f"equal       {outcome['values']} values{within}{part}")
