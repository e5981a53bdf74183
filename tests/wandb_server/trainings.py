"""Trainings as the tracker of W&B sees them, and what they leave."""

from experiments.tracking.jsonl import METRICS, JsonLines, read_history
from experiments.tracking.tracker import Trackers
from experiments.tracking.wandb import Wandb


def steps(first, last):
    """Events as a training writes them: a line a step, and the validation with the epoch's."""
    for step in range(first, last + 1):
        event = {"epoch": step / 10, "train/loss": 2.3 / step, "learning_rate": 1e-3}
        if step % 10 == 0:
            event |= {"val/loss": 2.5 / step, "val/accuracy": 1 - 1 / step}
        yield step, event


def train(run, first=1, last=40, status="finished", summary=None, **arguments):
    trackers = Trackers([JsonLines(), Wandb("digits", **arguments)])
    trackers.start(run)
    for step, event in steps(first, last):
        trackers.log(step, event)
    trackers.finish(summary or {}, status)


def recorded(run):
    return read_history(run.directory / METRICS)


def said(caplog):
    """Return what this project logged; the client has loggers of its own."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("experiments")]
