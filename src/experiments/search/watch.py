"""A study under way, as a table: live in a terminal, plain lines elsewhere."""

import contextlib
import datetime
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.search.configs import assignments
from experiments.search.results import WINNER, command, score
from experiments.search.study import STATES, Study, state_of
from experiments.tracking.terminal import duration, number

SHOWN = 5  # of the best trials, and of those that run
RECENT = 20  # trials that the time left is estimated from
STYLES = {"finished": "green", "pruned": "cyan", "diverged": "red", "failed": "red"}


def screen(study: Study) -> RenderableType:
    """The whole picture: how far, how long still, what runs, what is best."""
    plan, trials = study.plan, study.trials()
    done = [trial for trial in trials if trial.state.is_finished()]
    head = Text.assemble((plan.name, "bold"), f"  {plan.method} search, {plan.metric}")
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=plan.n_trials, completed=len(done), width=40),
        f"{len(done)}/{plan.n_trials}",
        left(trials, plan.n_trials),
    )
    parts: list[RenderableType] = [head, bar, counts(trials)]
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    if running:
        parts += [Text(), trial_table("running", running[:SHOWN])]
    ranked = best_first(study)
    if ranked:
        parts += [Text(), trial_table("best", ranked[:SHOWN])]
    return Group(*parts)


def counts(trials: list[FrozenTrial]) -> Text:
    """`12 finished  3 pruned  1 failed  2 running  46 waiting`."""
    found = Counter(map(state_of, trials))
    text = Text()
    for state in (*STATES[2:], *STATES[1::-1]):
        if found[state]:
            text.append(f"{found[state]} {state}  ", STYLES.get(state, ""))
    return text


def trial_table(title: str, trials: list[FrozenTrial]) -> Table:
    """A line a trial: its number, its value or latest report, and its overrides."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(title, justify="right")
    table.add_column("value", justify="right")
    table.add_column("epoch", justify="right")
    table.add_column("overrides", overflow="fold")
    for trial in trials:
        reported = trial.intermediate_values
        value = score(trial) if trial.state.is_finished() else reported.get(trial.last_step or -1)
        shown = "" if value is None else number(value)
        overrides = " ".join(assignments(trial.user_attrs.get("values", {})))
        table.add_row(str(trial.number), shown, str(trial.last_step or ""), overrides)
    return table


def best_first(study: Study) -> list[FrozenTrial]:
    """The finished trials, the best one first."""
    sign = 1 if study.plan.goal == "minimize" else -1
    done = [t for t in study.trials() if t.state == TrialState.COMPLETE]
    return sorted(done, key=lambda t: sign * t.value)  # type: ignore[operator]


def left(trials: list[FrozenTrial], budget: int) -> str:
    """`3:20 left`, from the pace of the last trials; empty where there is no telling."""
    ends = sorted(t.datetime_complete for t in trials if t.datetime_complete is not None)
    recent = ends[-RECENT:]
    if len(recent) < 3 or len(ends) == budget:
        return ""
    pace = (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1)
    since = (datetime.datetime.now() - recent[-1]).total_seconds()
    return f"{duration(max(pace * (budget - len(ends)) - since, 0))} left"


def ending(study: Study) -> str:
    """The last word on a study: what is best, as a command line, and where everything is."""
    best = study.best()
    lines = [counts(study.trials()).plain.strip(), *replicates(study)]
    if best is not None:
        winner = study.optuna.user_attrs.get(WINNER, {})
        tested = {k: v for k, v in winner.items() if k.startswith("test/")}
        values = {study.plan.metric: score(best) or 0.0} | tested
        shown = "  ".join(f"{name} {number(value)}" for name, value in values.items())
        lines += [
            f"best        trial {best.number}: {shown}",
            f"            {command(study, best)}",
        ]
    failed = [t for t in study.trials() if state_of(t) in ("failed", "diverged")]
    for reason, count in Counter(str(t.user_attrs.get("reason")) for t in failed).most_common(3):
        lines.append(f"failed      {count}x {reason}")
    lines.append(f"results     {study.folder}/results.csv")
    lines.append(f"            python report.py {study.folder}")
    return "\n".join(lines)


def replicates(study: Study) -> list[str]:
    """Mean and spread of a study that varies nothing but the seed."""
    scores = [value for trial in study.trials() if (value := score(trial)) is not None]
    if list(study.plan.parameters) != ["seed"] or len(scores) < 2:
        return []
    mean, spread = statistics.mean(scores), statistics.stdev(scores)
    least, most = number(min(scores)), number(max(scores))
    name = study.plan.metric
    return [
        f"{len(scores)} seeds    {name} {number(mean)} ± {number(spread)} (from {least} to {most})"
    ]


@contextlib.contextmanager
def watching(study: Study, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Shows a study while entered; yields what brings the picture up to date."""
    console = console or Console()
    if console.is_terminal:
        from rich.live import Live

        with Live(screen(study), console=console, auto_refresh=False, transient=True) as live:
            yield lambda: live.update(screen(study), refresh=True)
        return
    lines = PlainLines(study)
    yield lines.look
    lines.look()


class PlainLines:
    """A line for each trial that ends."""

    def __init__(self, study: Study):
        self.study = study
        self.told = {t.number for t in study.trials() if t.state.is_finished()}

    def look(self) -> None:
        """Prints a line for every trial that ended since the last look."""
        for trial in self.study.trials():
            if trial.state.is_finished() and trial.number not in self.told:
                self.told.add(trial.number)
                value = score(trial)
                told = "" if value is None else f" {self.study.plan.metric} {number(value)}"
                reason = trial.user_attrs.get("reason")
                why = f" ({reason})" if reason else ""
                overrides = " ".join(assignments(trial.user_attrs.get("values", {})))
                place = f"[{len(self.told)}/{self.study.plan.n_trials}]"
                line = f"{place} trial {trial.number} {state_of(trial)}{told}{why}  {overrides}"
                print(line, flush=True)


def follow(study: Study) -> None:
    """Shows a study until it is complete, live in a terminal; elsewhere once."""
    console = Console()
    if console.is_terminal:
        with watching(study, console) as look, contextlib.suppress(KeyboardInterrupt):
            while not study.complete:
                look()
                time.sleep(1)
    console.print(screen(study))
    if study.complete:
        print(ending(study))
