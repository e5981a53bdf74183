"""The results of a study: a table, the best trial as a command and a config, a live screen."""

import contextlib
import csv
import datetime
import io
import shlex
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from experiments.machine import called, write_whole
from experiments.search.configs import as_override, assignments, flags
from experiments.search.points import RESULTS
from experiments.search.shared.overviews import PLAIN, Overviews, line_of, worker_table
from experiments.search.study import SEED, STATES, Study, state_of
from experiments.tracking.jsonl import SUMMARY, read_mapping
from experiments.tracking.terminal import concise, duration, number
from experiments.viz.pages.settings import (
    in_lines,
    replicated,
    study_settings,
    write_settings,
)

BEST_COMMAND, BEST_RECIPE = "best.txt", "best.yaml"
SETTINGS = "settings.csv"  # means and deviations over seeds, where there are several
WINNER = "winner"  # attribute of a study: the number of the winner and its test metrics
MOST_OF_FRONT = 20  # trials
SHOWN = 5  # of the best trials, and of those that run
LINE_EVERY = 5.0  # seconds between lines about a worker where there is no terminal
RECENT = 20  # trials that the time left is estimated from
STYLES = {"finished": "green", "pruned": "cyan", "diverged": "red", "failed": "red"}


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values that a trial has drawn, by path or group."""
    return trial.user_attrs.get("values", {})


def winner_of(study: Study) -> dict[str, Any]:
    """Return `trial`, the number of the trial that was tested last, and its `test/*`."""
    return study.optuna.user_attrs.get(WINNER, {})


def metrics_of(study: Study, trial: FrozenTrial) -> list[str]:
    """Return the metrics of a trial, `val/accuracy 0.98`, and `test/*` of the tested winner."""
    winner = winner_of(study) if winner_of(study).get("trial") == trial.number else {}
    own = study.plan.metric[0].partition("/")[2]
    tested = {n: v for n, v in winner.items() if n.startswith("test/") and concise(n, own)}
    metrics = dict(zip(study.plan.metric, trial.values or (), strict=False)) | tested
    what = "median " if study.plan.seeds > 1 else ""
    return [f"{what}{name} {number(value)}" for name, value in metrics.items()]


def command(study: Study, trial: FrozenTrial) -> str:
    """Return the command line that runs a trial again: one run, or one for each of its seeds."""
    plan, settings, several = study.plan, study.settings(values_of(trial)), []
    seeds = [values_of(one)[SEED] for one in study.replicates(trial) if SEED in values_of(one)]
    if plan.seeds > 1:
        first = study.configs.compose(settings)[SEED]
        seeds = [first + index for index in range(plan.seeds)]
    if len(seeds) > 1:
        settings.pop(SEED, None)
        several = [f"seed={','.join(map(str, sorted(seeds)))}"]
        several += ["side_by_side=1"] if plan.side_by_side == 1 else []  # each in its own order
    return shlex.join(
        [
            *called("run").split(),
            *flags(plan.config_dir),
            *plan.overrides,
            *assignments(settings),
            *several,
        ]
    )


def write_results(study: Study, *, ended: bool = False) -> None:
    """Write the results so far; a reader finds each old file or the new one, never a part.

    With `ended` also those of settings, where there are replicates.
    """
    table, ranked, best = io.StringIO(), study.ranked(), study.best()
    front = {trial.number for trial in ranked}
    several = len(study.plan.metric) > 1
    names = [*study.plan.metric, "front"] if several else ["value"]
    columns = dict.fromkeys(["trial", "state", *names, "seconds", "run", *study.space.paths])
    writer = csv.DictWriter(table, list(columns), lineterminator="\n")
    writer.writeheader()
    for trial in study.trials():
        row = {"trial": trial.number, "state": state_of(trial), "run": f"trials/{trial.number}"}
        row |= {"seconds": trial.user_attrs.get("seconds")}
        row |= dict(zip(names, trial.values or (), strict=False))
        row |= {"front": str(trial.number in front).lower()} if several else {}
        writer.writerow(row | {n: as_override(value) for n, value in values_of(trial).items()})
    files = {RESULTS: table.getvalue()}
    if best is not None:
        files |= {BEST_COMMAND: f"{command(study, best)}\n", BEST_RECIPE: recipe(study, best)}
    elif ranked:
        each = (f"# {one_of(study, trial)}\n{command(study, trial)}\n" for trial in ranked)
        files[BEST_COMMAND] = "\n".join(each)
    for name, text in files.items():
        write_whole(study.folder / name, text)
    if ended and replicated(settings := study_settings(study.folder, study.folder)):
        write_settings(study.folder / SETTINGS, settings)


def one_of(study: Study, trial: FrozenTrial) -> str:
    """Return `trial 7: val/accuracy 0.98  test/accuracy 0.97`."""
    return f"trial {trial.number}: {'  '.join(metrics_of(study, trial))}"


def recipe(study: Study, best: FrozenTrial) -> str:
    """Return the best trial as a file of `conf/experiment`."""
    values = study.configs.given | study.settings(values_of(best))
    choices = {name: values.pop(name) for name in list(values) if name in study.configs.groups}
    defaults: list[Any] = [base] if (base := choices.pop("experiment", None)) else []
    defaults += [{f"override /{group}": choice} for group, choice in choices.items()]
    nested: dict[str, Any] = {}
    for path, value in values.items():
        node = nested
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    result = ", ".join(metrics_of(study, best))
    ended = sum(trial.state.is_finished() for trial in study.trials())
    header = [
        "# @package _global_",
        f"# {study.plan.name}, trial {best.number}, the best of {ended} that ended: {result}.",
        "# Once a copy of this file is in conf/experiment, your own or the shipped one:",
        "#",
        f"#   {called('run')} experiment={Path(BEST_RECIPE).stem}",
    ]
    parts = ({"defaults": defaults} if defaults else {}, nested)
    body = [yaml.safe_dump(part, sort_keys=False, width=100) for part in parts if part]
    return "\n".join(header) + "\n" + "\n".join(body)


def screen(study: Study) -> RenderableType:
    """Return the picture of a study: its progress, time left, running trials, best trials."""
    plan, trials = study.plan, study.trials()
    done = [trial for trial in trials if trial.state.is_finished()]
    head = Text.assemble((plan.name, "bold"), f"  {plan.method} search, {', '.join(plan.metric)}")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=plan.n_trials, completed=len(done), width=40),
        f"{len(done)}/{plan.n_trials}",
        left(trials, plan.n_trials),
    )
    parts: list[RenderableType] = [head, bar, counts(trials)]
    if workers := Overviews(study).read():
        parts += [Text(), worker_table(workers, plan)]
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    several = len(plan.metric) > 1
    names = plan.metric if several else ["value" if plan.seeds == 1 else "median"]
    for title, shown in (("running", running), ("front" if several else "best", study.ranked())):
        if shown:
            most = MOST_OF_FRONT if title == "front" else SHOWN
            parts += [Text(), trial_table(title, shown[:most], names)]
    return Group(*parts)


def counts(trials: list[FrozenTrial]) -> Text:
    """Return `12 finished  3 pruned  1 failed  2 running  46 waiting`."""
    found = Counter(map(state_of, trials))
    states = [state for state in (*STATES[2:], *STATES[1::-1]) if found[state]]
    return Text.assemble(*((f"{found[s]} {s}  ", STYLES.get(s, "")) for s in states))


def trial_table(title: str, trials: list[FrozenTrial], names: Sequence[str]) -> Table:
    """Return a row per trial: its number, its values or latest report, and its overrides."""
    numbers = [Column(name, justify="right") for name in (title, *names, "evaluation")]
    table = Table(*numbers, Column("overrides", overflow="fold"), **PLAIN)
    for trial in trials:
        last = trial.intermediate_values.get(trial.last_step or -1)
        values = trial.values if trial.state.is_finished() else [last]
        shown = ["" if value is None else number(value) for value in values or ()]
        shown += [""] * (len(names) - len(shown))
        overrides = " ".join(assignments(values_of(trial)))
        table.add_row(str(trial.number), *shown, str(trial.last_step or ""), overrides)
    return table


def left(trials: list[FrozenTrial], budget: int) -> str:
    """Return `3:20 left`, by the pace of the last trials; empty while there are too few."""
    ends = sorted(t.datetime_complete for t in trials if t.datetime_complete is not None)
    recent = ends[-RECENT:]
    if len(recent) < 3 or len(ends) == budget:
        return ""
    pace = (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1)
    since = (datetime.datetime.now() - recent[-1]).total_seconds()
    return f"{duration(max(pace * (budget - len(ends)) - since, 0))} left"


def ending(study: Study) -> str:
    """Return the last lines for the terminal: the best trial as a command, and the files."""
    best = study.best()
    lines = [counts(study.trials()).plain.strip(), *replicates(study)]
    if died := study.claims.died:
        lines.append(f"died        {died}x a worker during a trial, which went on in another one")
    if best is not None:
        lines.append(f"best        {one_of(study, best)}")
        lines += [f"            {note}"] if (note := test_note(study, best)) else []
        lines.append(f"            {command(study, best)}")
    elif front := study.ranked():
        shown = front[:MOST_OF_FRONT]
        titles = ["front", *[""] * (len(shown) - 1)]
        lines += [f"{t:<12}{one_of(study, one)}" for t, one in zip(titles, shown, strict=True)]
        lines += (
            [f"            and {len(front) - len(shown)} more"] if len(front) > len(shown) else []
        )
        lines.append(f"commands    {study.folder}/{BEST_COMMAND}")
        run = study.folder_of(front[0].number) / ("seed_0" if study.plan.seeds > 1 else "")
        of_one = quote(f"checkpoint={run}")
        lines.append(f"test one    {called('run')} mode=evaluate {of_one}")
    for state in ("failed", "diverged"):
        ended = [t.user_attrs.get("reason") for t in study.trials() if state_of(t) == state]
        for reason, count in Counter(map(str, ended)).most_common(3):
            lines.append(f"{state:<12}{count}x {reason.removeprefix('diverged ')}")
    lines.append(f"results     {study.folder}/{RESULTS}")
    lines.append(f"            {called('report')} {quote(str(study.folder))}")
    return "\n".join(lines)


def test_note(study: Study, best: FrozenTrial) -> str:
    """Return what the test result of the best trial, if it was tested, is to be read with."""
    run = study.folder_of(best.number) / ("seed_0" if study.plan.seeds > 1 else "")
    tested = winner_of(study).get("trial") == best.number and (run / SUMMARY).is_file()
    return read_mapping(run / SUMMARY).get("test_note", "") if tested else ""


def replicates(study: Study) -> list[str]:
    """Return mean and deviation over the seeds of the best settings, a line each."""
    settings = study_settings(study.folder, study.folder)
    if not replicated(settings):
        return []
    lines = in_lines(settings[:SHOWN])
    if len(settings) > SHOWN:
        lines.append(f"and {len(settings) - SHOWN} more in {SETTINGS}")
    return [f"{'' if index else 'settings':<12}{line}" for index, line in enumerate(lines)]


@contextlib.contextmanager
def watching(study: Study, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Show a study within the block; yield the function that brings the picture up to date.

    In a terminal the picture is a live table; elsewhere it is a line for each trial that ends.
    """
    console = console or Console()
    if console.is_terminal:
        from rich.live import Live

        with Live(screen(study), console=console, auto_refresh=False, transient=True) as live:
            yield lambda: live.update(screen(study), refresh=True)
        return
    ended = {trial.number for trial in study.trials() if trial.state.is_finished()}
    overviews = Overviews(study)
    printed: dict[str, float] = {}  # the time of the last line about each worker

    def look() -> None:
        for worker, now in overviews.read().items():
            if time.monotonic() - printed.setdefault(worker, time.monotonic()) >= LINE_EVERY:
                printed[worker] = time.monotonic()
                print(f"{worker}: {line_of(now, study.plan)}", flush=True)
        for trial in study.trials():
            if trial.state.is_finished() and trial.number not in ended:
                ended.add(trial.number)
                reason = trial.user_attrs.get("reason")
                result = "".join(f" {one}" for one in metrics_of(study, trial))
                why = f" ({reason})" if reason else ""
                print(
                    f"[{len(ended)}/{study.plan.n_trials}] trial {trial.number} {state_of(trial)}"
                    f"{result}{why}  {' '.join(assignments(values_of(trial)))}",
                    flush=True,
                )

    yield look
    look()


def follow(study: Study) -> None:
    """Show a study until it is complete, live in a terminal; elsewhere once."""
    console = Console()
    if console.is_terminal:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with watching(study, console) as look, contextlib.suppress(KeyboardInterrupt):
            while not study.complete:
                look()
                time.sleep(1)
    console.print(screen(study))
    if study.complete:
        print(ending(study))
