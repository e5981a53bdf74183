"""Reports on runs and studies.

python report.py <folder of runs>           report.html in it, and a table of the runs below it
python report.py <study folder>             report.html and figures/ in it, and a table
python report.py <study> <study> [...]      studies at the same budget side by side: comparison.png
python report.py <one of these, or a W&B project> wandb=workspace
                                            saved views and a report in W&B, or their JSON
"""

import sys
from pathlib import Path

from experiments import machine

if __name__ == "__main__":
    machine.end_on_signals()  # Ctrl-C while the rest is imported

from experiments.cli.main import command_line
from experiments.errors import UserError

CONFIG = Path(__file__).resolve().parent / "conf"


def main() -> None:
    """Report on the folders named on the command line."""
    arguments = sys.argv[1:]
    if "wandb=workspace" in arguments:
        from experiments.viz.workspace import publish

        arguments.remove("wandb=workspace")
        if len(arguments) != 1:
            raise UserError("wandb=workspace takes one study, folder of runs or project")
        publish(arguments[0], CONFIG)
        return
    folders = [Path(argument) for argument in arguments]
    if not folders:
        raise UserError(f"usage\n{__doc__}".rstrip())
    if len(folders) == 1 and not (folders[0] / "study.yaml").is_file():
        from experiments.viz.runs_page import compare_runs

        compare_runs(folders[0])
        return
    from experiments.commands import report

    if len(folders) == 1:
        report.write_report(folders[0], CONFIG)
    else:
        report.write_comparison(folders, CONFIG)


if __name__ == "__main__":
    sys.exit(command_line(main, hydra=False))
