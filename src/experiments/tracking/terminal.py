"""A run in the terminal: a live bar, or plain lines without a terminal."""

from __future__ import annotations

import io
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from experiments.errors import quantity
from experiments.machine import called
from experiments.tracking.tracker import SUCCESS, RunInfo, Tracker

DETAILS = frozenset(
    {
        *("top5_accuracy", "balanced_accuracy", "macro_f1", "precision", "recall", "auroc"),
        *("average_precision", "calibration_error", "rmse", "mae", "r2"),
    }
)
"""Metrics that are in the files alone, unless one of them is monitored."""

CLASSES = 20  # most rows of a table of classes
LINE_EVERY = 5.0  # seconds between plain lines


class Terminal(Tracker):
    """Progress on standard output, and a small table at the end.

    With a terminal, a live bar, and above it a line per epoch that stays. Without one (a pipe, a
    batch job), a plain line as soon as there is something to show, then one every few seconds.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._run: RunInfo | None = None
        self._bar: _Bar | None = None
        self._validation: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._last_line = -math.inf

    def status(self, text: str) -> None:
        if self._console.is_terminal:
            self._bar = self._bar or _Bar(self._console)
            self._bar.update(self._bar.task, description=text, refresh=True)
        else:
            self._print(text)

    def start(self, run: RunInfo) -> None:
        self._run = run
        start = f" from step {run.start_step}" if run.start_step else ""
        self._print(f"{run.name}: {run.total_steps} steps{start}, {run.parameters:,} parameters")
        if self._console.is_terminal:
            self._bar = self._bar or _Bar(self._console)
            self._bar.update(self._bar.task, total=run.total_steps, completed=run.start_step or 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        run = self._run
        assert run, "log() before start()"
        now = time.monotonic()
        scalars = self._shown(scalars)
        if scalars.keys() <= {"epoch"}:  # a line about the layers
            return
        validation = _of_split("val", scalars)
        is_new = bool(validation) and validation != self._validation
        self._validation = validation or self._validation
        self._first = self._first or (step, now)
        text = f"{_position(run, step, scalars)}  {_metrics({**scalars, **self._validation}, run)}"
        if self._bar:
            self._bar.metrics = _metrics({**scalars, **self._validation}, run)
            shown: dict[str, Any] = {"position": _position(run, step, scalars)}
            self._bar.update(self._bar.task, completed=step, description="training", **shown)
            if is_new:
                self._bar.above(text)
        elif step >= run.total_steps or now - self._last_line >= LINE_EVERY:
            (first, began), left = self._first, ""
            if first < step < run.total_steps:
                seconds = (run.total_steps - step) * (now - began) / (step - first)
                left = f"  {duration(seconds)} left"
            self._print(f"{text}{left}".rstrip())
            self._last_line = now

    progress = log

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._run is None:  # it ended before its first step
            return
        said = str(summary.get("wandb") or "")
        line, summary = summary.get("best") or {}, self._shown(summary)
        line = self._shown(line)
        best = _metrics(_of_split("val", line), self._run)
        kind = "last" if summary.get("monitor_mode") == "last" else "best"
        lines = {
            kind: f"{best} @ epoch {round(line['epoch'], 2):g}" if best else "",
            "test": _metrics(_of_split("test", summary), self._run).removeprefix("test "),
            "": self._run.test_note if _of_split("test", summary) else "",
            "time": duration(summary["seconds"]) if "seconds" in summary else "",
            "speed": _speed(summary),
            "parameters": f"{self._run.parameters:,}",
            "run folder": str(self._run.directory),
            "W&B": "" if said.startswith("http") else said,  # an address was there from the start
            "MLflow": str(summary.get("mlflow") or ""),
        }
        if status == "interrupted" and self._run.config.get("mode") == "train":
            folder = quote(f"resume={self._run.directory}")
            lines["go on with"] = f"{called('run')} {folder}"
        style = "green" if status in SUCCESS else "yellow" if status == "interrupted" else "red"
        text = Text.assemble(("status      ", "dim"), (status.replace("_", " "), style))
        for label, value in lines.items():
            if value:
                text.append(f"\n{label:<12}", style="dim").append(value)
        # Not folded: paths and commands are there to be copied.
        self._console.print(text, soft_wrap=True)
        print_classes(summary, self._console)

    def _shown(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        assert self._run
        monitored = self._run.config.get("trainer", {}).get("monitor")
        shown = {name: value for name, value in scalars.items() if concise(name, monitored)}
        for split in ("train", "val", "test"):  # the loss of a regression says as much
            if "squared_error" in self._run.units and monitored != "squared_error":
                shown.pop(f"{split}/squared_error", None)
        return shown

    def _print(self, text: str) -> None:
        # Not through Rich, which would fold lines at 80 columns for a pipe.
        if self._bar:
            self._bar.above(text)
        else:
            print(text, file=self._console.file, flush=True)


class _Bar(Progress):
    """The live display: a bar, and the latest metrics below it."""

    def __init__(self, console: Console):
        self.metrics = ""
        super().__init__(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[position]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,
            expand=True,
            transient=True,
        )
        self.task = self.add_task("starting", total=None, position="")
        self._streams: list[tuple[logging.StreamHandler, Any]] = []
        self.start()

    def start(self) -> None:
        before = sys.stdout, sys.stderr
        super().start()
        # sys.stdout and sys.stderr now print above the bar. A logging handler holds on to the
        # stream that it was made with, and would write across it.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in before:
                self._streams.append((handler, handler.setStream(_Above(self))))

    def stop(self) -> None:
        super().stop()
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()

    def above(self, text: str) -> None:
        """Print lines above the bar, which the terminal breaks and not Rich: paths stay whole."""
        self.console.print(Text(text), soft_wrap=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.metrics:
            yield Text(self.metrics)


class _Above(io.StringIO):
    """A stream whose whole lines are printed above a bar."""

    def __init__(self, bar: _Bar):
        super().__init__()
        self._bar = bar

    def flush(self) -> None:
        """Print what was written."""
        if text := self.getvalue().rstrip("\n"):
            self._bar.above(text)
        self.seek(0)
        self.truncate()


def _position(run: RunInfo, step: int, scalars: Mapping[str, float]) -> str:
    """Return `1200/9380  epoch 2.56/20  12.3k examples/s`."""
    total, per_epoch = run.total_steps, max(run.steps_per_epoch, 1)
    epoch = scalars.get("epoch", step / per_epoch)
    text = f"{step:>{len(str(total))}}/{total}  epoch {epoch:.2f}/{round(total / per_epoch, 2):g}"
    speed = _speed(scalars)
    return f"{text}  {speed:>16}" if speed else text


def _speed(scalars: Mapping[str, Any]) -> str:
    speed = scalars.get("examples_per_second")
    return f"{quantity(speed).replace(' ', '')} examples/s" if speed else ""


def _of_split(split: str, scalars: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scalars.items() if name.startswith(f"{split}/")}


def _metrics(scalars: Mapping[str, Any], run: RunInfo) -> str:
    """Return `train loss 0.1145 accuracy 0.9975 | val loss 0.1245`, without means of an epoch."""
    groups: dict[str, str] = {}
    for key, value in sorted(scalars.items(), key=lambda item: not item[0].endswith("/loss")):
        group, _, name = key.partition("/")
        if group in ("train", "val", "test") and not name.startswith("epoch_"):
            unit = f" {run.units[name]}" if name in run.units else ""
            groups[group] = f"{groups.get(group, group)} {name} {number(value):>6}{unit}"
    return " | ".join(groups.values())


def concise(name: str, monitored: str | None) -> bool:
    """Return whether a metric, such as `val/recall`, is shown where there is little room."""
    group, _, metric = name.partition("/")
    return metric == monitored or (metric not in DETAILS and group != "diagnostics")


def print_classes(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what a summary says of each class, if it does: of many those of the lowest F1."""
    rows = summary.get("classes", [])
    shown = rows if len(rows) <= CLASSES else sorted(rows, key=lambda row: row["f1"])[:CLASSES]
    if not rows:
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "class" else "right", overflow="fold")
    for row in shown:
        values = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        table.add_row(*map(escape, values))
    console = console or Console()
    if len(shown) < len(rows):
        console.print(f"the {len(shown)} classes of the lowest F1, of {len(rows)}:")
    console.print(table)


def number(value: float) -> str:
    """Format with four significant digits: `0.1000`, `12.35`, `1.000e-05`; integers as they are."""
    return str(value) if isinstance(value, int) else f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """Format as `42s`, `3:07` or `1:02:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"
