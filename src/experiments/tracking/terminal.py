"""A run in the terminal: a live bar, or plain lines without a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from experiments.tracking.tracker import SUCCESS, RunInfo, Tracker

LINE_EVERY = 5.0
"""Seconds between plain lines."""

EPOCH_EVERY = 1.0
"""Seconds between plain lines that report a validation."""


class Terminal(Tracker):
    """Progress on standard output, and a small table at the end.

    With a terminal, a live bar. Without one (a pipe, a batch job), a plain line as soon as there
    is something to show, then one every few seconds and one per epoch.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._run: RunInfo | None = None
        self._bar: _Bar | None = None
        self._validation: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0

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
        validation = {k: v for k, v in scalars.items() if k.startswith("val/")}
        validated = bool(validation) and validation != self._validation
        self._validation = validation or self._validation
        self._first = self._first or (step, now)
        if self._bar:
            self._bar.metrics = _metrics({**scalars, **self._validation})
            position = _position(run, step, scalars)
            self._bar.update(
                self._bar.task, completed=step, description="training", position=position
            )
        elif self._due(now, EPOCH_EVERY if validated else LINE_EVERY, step >= run.total_steps):
            parts = _position(run, step, scalars), _metrics(scalars), self._left(run, step, now)
            self._print("  ".join(filter(None, parts)))
            self._last_line = now

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        self.log(step, scalars)

    def finish(self, summary: Mapping[str, object], status: str) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._run is None:  # it ended before its first step
            return
        seconds, speed = summary.get("seconds"), summary.get("examples_per_second")
        test = _metrics({k: v for k, v in summary.items() if k.startswith("test/")})
        lines = {
            "best": _best(summary),
            "test": test.removeprefix("test "),
            "time": duration(seconds) if isinstance(seconds, (int, float)) else "",
            "speed": f"{_count(speed)} examples/s" if isinstance(speed, (int, float)) else "",
            "parameters": f"{self._run.parameters:,}",
            "run folder": str(self._run.directory),
            "W&B": str(summary.get("wandb") or ""),
        }
        style = "green" if status in SUCCESS else "yellow" if status == "interrupted" else "red"
        text = Text.assemble(("status      ", "dim"), (status.replace("_", " "), style))
        for label, value in lines.items():
            if value:
                text.append(f"\n{label:<12}", style="dim").append(value)
        # Not folded: paths and commands are there to be copied.
        self._console.print(text, soft_wrap=True)

    def _due(self, now: float, every: float, last: bool) -> bool:
        return self._last_line == 0.0 or now - self._last_line >= every or last

    def _left(self, run: RunInfo, step: int, now: float) -> str:
        first, began = self._first or (step, now)
        if step == first or step >= run.total_steps:
            return ""
        return f"{duration((run.total_steps - step) * (now - began) / (step - first))} left"

    def _print(self, text: str) -> None:
        # Not through Rich, which would fold lines at 80 columns for a pipe.
        print(text, file=sys.stdout if self._bar else self._console.file, flush=True)


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
        before = {sys.stdout: "stdout", sys.stderr: "stderr"}
        super().start()
        # sys.stdout and sys.stderr now print above the bar. A logging handler holds on to the
        # stream that it was made with, and would write across it.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in before:
                stream = getattr(sys, before[handler.stream])
                self._streams.append((handler, handler.setStream(stream)))

    def stop(self) -> None:
        super().stop()
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.metrics:
            yield Text(self.metrics, no_wrap=True, overflow="ellipsis")


def _position(run: RunInfo, step: int, scalars: Mapping[str, float]) -> str:
    """Return `1200/9380  epoch 2.56/20  12.3k examples/s`."""
    total, per_epoch = run.total_steps, max(run.steps_per_epoch, 1)
    epoch = scalars.get("epoch", step / per_epoch)
    text = f"{step:>{len(str(total))}}/{total}  epoch {epoch:.2f}/{total / per_epoch:g}"
    speed = scalars.get("examples_per_second")
    return text + (f"  {_count(speed):>5} examples/s" if speed else "")


def _metrics(scalars: Mapping[str, Any]) -> str:
    """Return `train loss 0.1145 accuracy 0.9975 | val loss 0.1245`, without means of an epoch."""
    groups: dict[str, str] = {}
    for key, value in sorted(scalars.items(), key=lambda item: not item[0].endswith("/loss")):
        group, _, name = key.partition("/")
        if group in ("train", "val", "test") and not name.startswith("epoch_"):
            groups[group] = f"{groups.get(group, group)} {name} {number(value):>6}"
    return " | ".join(groups.values())


def _best(summary: Mapping[str, object]) -> str:
    """Return the metrics of the best epoch, whose log line the summary holds under `best`."""
    line = summary.get("best")
    if not isinstance(line, Mapping):
        return ""
    text = _metrics({k: v for k, v in line.items() if k.startswith("val/")})
    return f"{text} @ epoch {line['epoch']:g}" if text and "epoch" in line else text


def number(value: float) -> str:
    """Format with four significant digits: `0.1000`, `12.35`, `1.000e-05`; integers as they are."""
    return str(value) if isinstance(value, int) else f"{value:#.4g}".rstrip(".")


def _count(value: float) -> str:
    """Format with three digits and a unit: `870`, `12.3k`, `4.56M`."""
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:#.3g}{unit}".replace(f".{unit}", unit) if unit else f"{value:.0f}"
        value /= 1000
    return f"{value:.3g}G"


def duration(seconds: float) -> str:
    """Format as `42s`, `3:07` or `1:02:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest}s"
