"""Reports on runs and studies.

experiments report <folder of runs>        report.html in it, and a table of the runs below it
experiments report <study folder>          report.html and figures/ in it, and a table
experiments report <study> <study> [...]   studies at the same budget side by side: comparison.png
experiments report <one of these, or a W&B project> wandb=workspace
                                           saved views and a report in W&B, or their JSON
"""

import sys
from pathlib import Path

from experiments.errors import UserError
from experiments.machine import CONFIG


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
    if len(folders) == 1 and not (folders[0] / "study.yaml").is_file():
        from experiments.viz.pages.runs_page import compare_runs

        compare_runs(folders[0])
        return
    from experiments.commands import report

    if len(folders) == 1:
        report.write_report(folders[0], CONFIG)
    else:
        report.write_comparison(folders, CONFIG)
