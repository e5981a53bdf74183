"""Reports on runs and studies.

experiments report <run folder>            report.html in it: its curves and figures
experiments report <folder of runs>        report.html in it, and a table: by data and objective,
                                           seeds as mean and deviation, a study as its best setting
experiments report <folder of a lesson>    report.html in it: its claims and figures
experiments report <study folder>          report.html and figures/ in it, and a table
experiments report <study> <study> [...]   at equal budget side by side, with a test whether they
                                           differ: in comparisons/<their names>/, here
experiments report <folder> <folder> [...] runs and studies of several folders, likewise
experiments report <one of these, or a W&B project> wandb=workspace
                                           saved views and a report in W&B, or their JSON
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.machine import CONFIG

COMPARISONS = "comparisons"


def usage() -> str | None:
    """Return what `--help` prints."""
    return __doc__


def main() -> None:
    """Report on the folders named on the command line."""
    arguments = sys.argv[1:]
    if "wandb=workspace" in arguments:
        from experiments.viz.pages.workspace import publish

        arguments.remove("wandb=workspace")
        if len(arguments) != 1:
            raise UserError("wandb=workspace takes one study, folder of runs or project")
        publish(arguments[0], CONFIG)
        return
    folders = [Path(argument) for argument in arguments]
    if not folders:
        raise UserError(f"usage\n{__doc__}".rstrip())
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")
    if len(folders) == 1 and (folders[0] / "lesson.json").is_file():
        from experiments.viz.pages.lesson_page import report_lesson

        report_lesson(folders[0])
        return
    studies = all((folder / "study.yaml").is_file() for folder in folders)
    into = folders[0] if len(folders) == 1 else _new_folder(folders)
    if studies:
        from experiments.commands import report

        if len(folders) == 1:
            report.write_report(into, CONFIG)
        else:
            report.write_comparison(folders, CONFIG, into)
    else:
        from experiments.viz.pages.runs_page import compare_runs

        compare_runs(folders, into)


def _new_folder(folders: Sequence[Path]) -> Path:
    """Return the folder of a comparison, below the working directory and not beside the others."""
    into = Path(COMPARISONS, "_".join(folder.absolute().name for folder in folders)[:200])
    into.mkdir(parents=True, exist_ok=True)
    return into
