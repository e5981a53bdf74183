"""A run as seen in the terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from experiments.tracking.tracker import SUCCESS, RunInfo, Tracker

LINE_EVERY = 5.0
"""Seconds between plain lines."""

EPOCH_EVERY = 1.0
"""Seconds between plain lines that report an epoch."""


class Terminal(Tracker):
    """Progress on standard output and a small table at the end.

    With a terminal, one live bar. Without one (a pipe, a batch job), a plain line as soon as there
    is something to tell, then one every few seconds and one an epoch.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._handlers: list[tuple[logging.StreamHandler, object]] = []
        self._validation: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0
        self._speed = 0.0

    def start(self, run: RunInfo) -> None:
        self._run = run
        self._epochs = run.total_steps / max(run.steps_per_epoch, 1)
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._start_bar(run)
        else:
            start = f" from step {run.start_step}" if run.start_step else ""
            self._print(
                f"{run.name}: {run.total_steps} steps{start}, {run.parameters:,} parameters"
            )

    def status(self, text: str) -> None:
        if self._bar:
            self._bar.update(self._task, description=text)
        else:
            self._print(text)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        now = time.monotonic()
        validation = {k: v for k, v in scalars.items() if k.startswith("val/")}
        self._validation = validation or self._validation
        self._speed = scalars.get("examples_per_second", self._speed)
        self._first = self._first or (step, now)
        if self._bar:
            metrics = _metrics({**scalars, **self._validation})
            self._bar.update(
                self._task,
                description="training",
                completed=step,
                metrics=self._position(step, scalars) + metrics,
            )
            return
        quiet = EPOCH_EVERY if validation else LINE_EVERY
        if (
            self._last_line == 0.0
            or now - self._last_line >= quiet
            or step >= self._run.total_steps
        ):
            self._last_line = now
            self._print(self._position(step, scalars) + _metrics(scalars) + self._left(step, now))

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        self._stop_bar()
        seconds = time.monotonic() - self._began
        style = "green" if status in SUCCESS else "yellow" if status == "interrupted" else "red"
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("status", Text(status.replace("_", " "), style=style))
        for label, text in (
            ("best", _best(summary)),
            ("test", _test(summary)),
            ("time", _duration(seconds)),
            ("speed", f"{_count(self._speed)} examples/s" if self._speed else ""),
            ("parameters", f"{self._run.parameters:,}"),
            ("run folder", str(self._run.directory)),
            ("W&B", str(summary.get("wandb") or "")),
        ):
            if text:
                table.add_row(label, Text(text))
        self._console.print(table)

    def _start_bar(self, run: RunInfo) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[metrics]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=self._console,
            refresh_per_second=4,
            expand=True,
            transient=True,
        )
        self._task = self._bar.add_task(
            "starting", total=run.total_steps, completed=run.start_step, metrics=""
        )
        self._bar.start()
        # The bar has replaced sys.stdout and sys.stderr by writers that print above it; a logging
        # handler holds on to the stream it was made with, and would write across it.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                replacement = {sys.__stdout__: sys.stdout, sys.__stderr__: sys.stderr}
                if (stream := replacement.get(handler.stream)) is not None:
                    self._handlers.append((handler, handler.setStream(stream)))

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()

    def _position(self, step: int, scalars: Mapping[str, float]) -> str:
        total = str(self._run.total_steps)
        epoch = scalars.get("epoch", step / max(self._run.steps_per_epoch, 1))
        text = f"{step:>{len(total)}}/{total}  epoch {epoch:.2f}/{self._epochs:g}"
        speed = scalars.get("examples_per_second")
        return text + (f"  {_count(speed):>5} ex/s" if speed else "")

    def _left(self, step: int, now: float) -> str:
        assert self._first
        steps, seconds = step - self._first[0], now - self._first[1]
        remaining = self._run.total_steps - step
        if steps <= 0 or seconds <= 0 or remaining <= 0:
            return ""
        return f"  {_duration(remaining * seconds / steps)} left"

    def _print(self, text: str) -> None:
        # Not through Rich: it would wrap at 80 columns and colour numbers.
        print(text, file=self._console.file, flush=True)


def _metrics(scalars: Mapping[str, float]) -> str:
    shown = [k for k in scalars if k.startswith(("train/", "val/", "test/"))]
    return "".join(f"  {key} {number(scalars[key]):>6}" for key in shown)


def _best(summary: Mapping[str, object]) -> str:
    return _listed(summary, "best/")


def _test(summary: Mapping[str, object]) -> str:
    return _listed(summary, "test/")


def _listed(summary: Mapping[str, object], prefix: str) -> str:
    return "  ".join(
        f"{key.removeprefix(prefix)} {number(value)}"
        for key, value in summary.items()
        if key.startswith(prefix) and isinstance(value, (int, float))
    )


def number(value: float) -> str:
    """Four significant digits: `0.1000`, `12.35`, `1.000e-05`; integers as they are."""
    return str(value) if isinstance(value, int) else f"{value:#.4g}".rstrip(".")


def _count(value: float) -> str:
    """Three digits and a unit: `870`, `12.3k`, `4.56M`."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000
    return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"


def _duration(seconds: float) -> str:
    """`42s`, `3:07` or `1:02:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"
