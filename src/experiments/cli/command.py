"""Deep-learning experiments from the command line.

experiments run model=lenet5 optim=adam    one configured run
experiments sweep my.yaml workers=2        a search over hyperparameters
experiments report runs                    reports on runs and studies

Each says more with --help. The scripts run.py, sweep.py and report.py of a checkout are the same.
"""

import importlib
import sys

from experiments import machine

PROGRAMS = ("run", "sweep", "report")


def main(program: str | None = None) -> int:
    """Run a program, or the one that the first argument names; return the exit code."""
    machine.end_on_signals()  # Ctrl-C while the rest is imported
    if program is None:
        program = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if program in ("-h", "--help"):
        print(__doc__)
        return 0
    if program not in PROGRAMS:
        from experiments.errors import suggest

        hint = suggest(program, PROGRAMS) or f"; it is one of {', '.join(PROGRAMS)}"
        print(f"error: experiments {program}: there is no such command{hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"experiments.cli.{program}")
    from experiments.cli.main import command_line

    if program != "run" and {"-h", "--help"}.intersection(sys.argv[1:]):
        return command_line(lambda: print(module.usage()), hydra=False)
    return command_line(module.main, hydra=program == "run")


if __name__ == "__main__":
    sys.exit(main())
