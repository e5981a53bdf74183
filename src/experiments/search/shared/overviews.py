"""What the workers of a study say of how far their trials are, and how it is shown."""

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from experiments.errors import UserError
from experiments.search.local import LOGS
from experiments.tracking.jsonl import read_mapping, write_json
from experiments.tracking.terminal import number

if TYPE_CHECKING:
    from experiments.search.plan import Plan
    from experiments.search.study import Study

SHOWN = 5  # workers
PLAIN: dict[str, Any] = {"box": None, "header_style": "dim", "pad_edge": False}  # of a table


class Overviews:
    """The files in which the workers of a study say how far their trials are."""

    def __init__(self, study: "Study"):
        self.study, self.folder, self.written = study, study.folder / LOGS, float("-inf")
        self.own = self.folder / f"{study.worker}.json"

    def write(self, overview: Mapping[str, float]) -> None:
        """Write this worker's, at most once a second, where the disk lets it."""
        if time.monotonic() - self.written >= 1:
            self.written = time.monotonic()
            with contextlib.suppress(OSError):
                self.folder.mkdir(exist_ok=True)
                write_json(self.own, overview)

    def read(self) -> dict[str, dict[str, float]]:
        """Return those of the workers that live, by worker."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, UserError):  # removed meanwhile, or damaged
                if self.study.claims.now() - path.stat().st_mtime <= self.study.plan.heartbeat:
                    found[path.stem] = read_mapping(path)
        return found


def runs_of(plan: "Plan", count: float) -> str:
    """Return the word for what a worker trains side by side: trials, or the seeds of trials."""
    return f"{'trial' if plan.seeds == 1 else 'seed'}{'' if count == 1 else 's'}"


def line_of(now: Mapping[str, float], plan: "Plan") -> str:
    """Return how far a worker is, in a line: `16 seeds  step 20/400  epoch 1.00  best ...`."""
    count, place = now["trials"], f"{now['step']:.0f}/{now['total_steps']:.0f}"
    runs = f"{count:.0f} {runs_of(plan, count)}"
    return f"{runs}  step {place}  epoch {now['epoch']:.2f}  {best_of(now)}".rstrip()


def worker_table(workers: Mapping[str, dict[str, float]], plan: "Plan") -> Table:
    """Return a row per worker: its trials side by side, how far they are, the best of them."""
    titles = (runs_of(plan, 2), "step", "epoch", "so far", "diverged", "examples/s")
    table = Table("worker", *(Column(title, justify="right") for title in titles), **PLAIN)
    for worker, now in list(workers.items())[:SHOWN]:
        place = f"{now['step']:.0f}/{now['total_steps']:.0f}", f"{now['epoch']:.2f}"
        rest = str(int(now["diverged"]) or ""), f"{now['examples_per_second']:,.0f}"
        table.add_row(worker, f"{now['trials']:.0f}", *place, best_of(now), *rest)
    if len(workers) > SHOWN:
        table.add_row(f"and {len(workers) - SHOWN} more")
    return table


def best_of(now: Mapping[str, float]) -> str:
    """Return the monitored metric in a worker's overview, with its name."""
    metrics = {name: value for name, value in now.items() if name.startswith("val/")}
    return " ".join(f"best {name} {number(value)}" for name, value in metrics.items())
