"""One trial as the host sees it: its config, its folder, its best epoch, and how it ended."""

import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.core.config import build
from experiments.core.schedules import SCALE, Plateau
from experiments.errors import UserError
from experiments.machine import StopRequest
from experiments.tracking import provenance
from experiments.tracking.jsonl import write_json
from experiments.tracking.tracker import RunInfo, Trackers
from experiments.training.devices.numerics import products
from experiments.training.distributed import Decisions, is_first
from experiments.training.metrics import Best, Line
from experiments.training.options import check_lengths, layers_of
from experiments.training.run_folder import FOUND
from experiments.training.runtime import devices
from experiments.training.setup import Setup

log = logging.getLogger(__name__)

SIZES = ("batch_size", "steps_per_epoch")  # of a batch in examples, of an epoch in steps
SPLIT = ("validation_fraction", "split_seed", "held_out", "train_split", "validation_split")
"""Keys of `data` that decide which examples are held out; training on may not change them."""

TESTED = ("finished", "stopped_early")
"""The statuses of trials whose best weights are worth a test."""


class Trial:
    """A trial of a static configuration.

    Args:
      setup: what it shares with others of its static configuration.
      config: its own, from which its numbers and seeds are.
      directory: its run folder; it exists.
    """

    def __init__(
        self,
        setup: Setup,
        config: Mapping[str, Any],
        directory: Path,
        trackers: Trackers,
        stop: StopRequest,
    ):
        check_lengths(config, setup.experiment.steps_per_epoch)
        self.setup, self.config, self.directory = setup, config, directory
        self.trackers, self.stop = trackers, stop
        self.hparams: dict[str, np.float32] = setup.inputs_of(config)
        keep = setup.trainer.keep_best if setup.trainer.checkpoints else None
        self.best = Best(*setup.monitor, setup.trainer.min_delta, keep or 0)
        self.schedule: Any = build(config["schedule"])
        self.plateau = Plateau() if SCALE in self.hparams else None
        if self.plateau is not None and self.best.mode == "last":
            raise UserError("schedule=reduce_on_plateau goes by a metric: say trainer.monitor=...")
        self.line: Line = {}  # the newest
        self.diverged_at: int | None = None  # the step, from 1
        self.first_nan: str | None = None  # the operation that made it, with `debug_nans`
        self.summary: dict[str, Any] = {}
        self.among_others = False  # trained side by side with others
        self.training_seconds = self.seconds_before = 0.0  # the latter of earlier sittings

    @property
    def seed(self) -> int:
        """The seed of the initial weights, dropout and augmentation."""
        return self.config["seed"]

    @property
    def shuffle_seed(self) -> int:
        """The seed of the order of the training data."""
        own = self.setup.trainer.shuffle_seed
        return self.seed if own is None else own

    @property
    def seconds(self) -> float:
        """Seconds of training and validation, over all sittings; those of all trials beside it."""
        return self.seconds_before + time.perf_counter() - self._started

    def start(self, parameters: int, step: int) -> None:
        """Start the clock and the trackers; `step` is that of the checkpoint it goes on from."""
        self._started, self.parameters = time.perf_counter(), parameters
        if (found := self.setup.splits.found) is not None and is_first():
            write_json(self.directory / FOUND, found)
        if is_first():
            data = self.setup.splits.fingerprint
            provenance.record(
                self.directory, step=step, data=data, devices=devices(), products=products()
            )
        self.trackers.start(self.info(parameters, step))

    def info(self, parameters: int, step: int = 0) -> RunInfo:
        """Return what trackers learn before the first step."""
        return RunInfo(
            directory=self.directory,
            name=self.config["name"],
            config=dict(self.config),
            total_steps=self.setup.experiment.total_steps,
            steps_per_epoch=self.setup.experiment.steps_per_epoch,
            batch_size=self.setup.batch_size,
            parameters=parameters,
            start_step=step or None,
            class_names=tuple(self.setup.splits.class_names),
            units=self.setup.value_units,
            test_note=self.setup.splits.test_note,
        )

    def log(self, step: int, line: Line) -> None:
        """Record a line of metrics."""
        self.line = line
        self.trackers.log(step, line)

    def take(self, step: int, line: Line) -> bool:
        """Take the line of an evaluation; return whether no earlier one was as good."""
        if self.plateau is not None:
            value, rate = line[f"val/{self.best.metric}"], self.config["optim"]["learning_rate"]
            seen = self.schedule.after(self.plateau, value, self.best.mode, rate)
            if seen.scale < self.plateau.scale:
                said = "%s: the learning rate is lowered to %.3g after step %d"
                log.info(said, self.directory.name, rate * seen.scale, step)
            self._follow(seen)
        self.line = line
        return self.best.take(step, line)

    def _follow(self, seen: Plateau) -> None:
        self.plateau, self.hparams[SCALE] = seen, np.float32(seen.scale)

    def warn(self, message: str) -> None:
        """Log a warning, with the trial's name where there are others."""
        log.warning("%s%s", f"{self.directory.name}: " if self.among_others else "", message)

    def end_of(self, diverged_at: Any) -> int | None:
        """Return the step after which the trial has diverged, if it has and did not know.

        Args:
          diverged_at: the first step, from 0, that was not finite, or -1.
        """
        stops = self.setup.trainer.on_nan == "stop" and self.diverged_at is None
        return int(diverged_at) + 1 if stops and diverged_at >= 0 else None

    def diverge(self, step: int) -> None:
        """Take note of a loss or a gradient that is not finite."""
        self.diverged_at = step
        self.warn(f"loss or gradient is not finite at step {step}")

    def reason_to_end(self, step: int, decisions: Decisions, asked: bool) -> str | None:
        """Return the status with which it ends after the steps so far, if it does.

        Args:
          step: the steps done.
          decisions: what the clock and the signals say.
          asked: whether a callback asks for it.
        """
        trainer, reason = self.setup.trainer, None
        if self.diverged_at is not None:
            return "diverged"
        if trainer.patience is not None and self.best.stale >= trainer.patience:
            unit = "epochs" if trainer.eval_every is None else "evaluations"
            reason = f"val/{self.best.metric} has not improved for {trainer.patience} {unit}"
        elif trainer.target_loss is not None and self._train_loss(step) <= trainer.target_loss:
            reason = f"trainer.target_loss={trainer.target_loss:g} is reached"
        elif asked:
            reason = self.trackers.stop_reason or "a callback asks for it"
        elif decisions.late:
            reason = f"trainer.max_time={trainer.max_time:g} seconds have passed"
        if reason is not None:
            log.info("stopping early: %s", reason)
            return "stopped_early"
        signal = decisions.signal
        if self.among_others:  # one of several may be asked alone
            signal = signal or self.stop.name
        if signal is None:
            return None
        self.warn(f"stopped by {self.stop.cause or signal} after step {step}")
        return self.stop.status

    def _train_loss(self, step: int) -> float:
        """Return the mean loss of the period that ends with a step, if it is of the whole task.

        Where layers are trained one after the other, the loss is that of one layer.
        """
        objective, steps = self.config["objective"], self.setup.experiment.steps_per_epoch
        layerwise = layers_of(self.config) * (objective.get("epochs_a_layer") or 0) * steps
        whole = self.setup.periods.begin(step) >= layerwise
        return self.line.get("train/epoch_loss", math.inf) if whole else math.inf

    def summarize(self, step: int, status: str) -> dict[str, Any]:
        """Return what `summary.json` says, but for the test."""
        step = self.diverged_at or step
        diverged: dict[str, Any] = {}
        if self.diverged_at is not None:
            diverged = {"diverged_at": self.diverged_at}
            diverged |= {"first_nan": self.first_nan} if self.first_nan else {}
        seen = step * self.setup.batch_size
        return {
            "step": step,
            **self.line,
            "best": self.best.line,
            "monitor": f"val/{self.best.metric}",
            "monitor_mode": self.best.mode,
            **({"kept": self.best.best_k} if self.best.keep else {}),
            **diverged,
            "status": status,
            "seconds": round(self.seconds, 3),
            "examples_per_second": seen / max(self.training_seconds, 1e-9),
            "parameters": self.parameters,
            **{name: self.units[name] for name in SIZES},
            **({"units": named} if (named := self.setup.value_units) else {}),
            **({"test_note": note} if (note := self.setup.splits.test_note) else {}),
        }

    def progress(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return what the host knows and the device does not; JSON."""
        return {
            "recorder": metrics,
            **self.best.progress(),
            "plateau": self.plateau,
            "last_line": self.line,
            "training_seconds": self.training_seconds,
            "seconds": self.seconds,
            "fingerprint": self.setup.splits.fingerprint,
            "monitor": self.monitor,
            "total_steps": self.setup.experiment.total_steps,
            **self.units,
        }

    @property
    def units(self) -> dict[str, Any]:
        """The sizes in which its progress is counted, and what decides which data are held out."""
        data = self.config["data"]
        steps = self.setup.experiment.steps_per_epoch
        sizes = dict(zip(SIZES, (self.setup.batch_size, steps), strict=True))
        return sizes | {f"data.{key}": data[key] for key in SPLIT if key in data}

    def check_units(self, saved: Mapping[str, Any]) -> None:
        """Check that `saved`, a summary or what `progress` returned, counts as this config does.

        Raises:
            UserError: an epoch, a step or the split was something else.
        """
        changed = {n: saved[n] for n, now in self.units.items() if saved.get(n, now) != now}
        if changed:
            said = ", ".join(f"{n} was {old}, now {self.units[n]}" for n, old in changed.items())
            raise UserError(
                f"{self.directory} cannot go on: {said}\ngive it the old data and sizes, or start "
                f"a new run from its weights: {shlex.quote(f'model.pretrained={self.directory}')}"
            )

    @property
    def monitor(self) -> list:
        """The metric that the best epoch is chosen by, the batches it is measured on, and bits."""
        trainer = self.setup.trainer
        units = [] if trainer.units == "nats" else [trainer.units]
        return [self.best.metric, self.best.mode, trainer.eval_batches, *units]

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up what `progress` returned; say what has changed since; raises as `check_units`."""
        self.check_units(saved)
        self.line = saved["last_line"]
        self.training_seconds, self.seconds_before = saved["training_seconds"], saved["seconds"]
        if saved["fingerprint"] != self.setup.splits.fingerprint:
            self.warn("the data on disk have changed since it was saved")
        if (before := saved.get("monitor", self.monitor)) == self.monitor:
            self.best.restore(saved)
        else:
            self.warn(f"the best epoch by {before[0]} ({before[1]}) is looked for anew")
        if self.plateau is not None:
            seen = Plateau(*saved["plateau"])
            self._follow(seen if before == self.monitor else Plateau(seen.scale))
        total = self.setup.experiment.total_steps
        if (steps := saved.get("total_steps", total)) != total:
            self._compare_schedules(saved["recorder"]["step"], steps, total)

    def _compare_schedules(self, step: int, before: int, total: int) -> None:
        """Say where another number of steps in all has changed the learning rate at a step."""
        factor = self.setup.experiment.learning_rate_factor
        old, new = (float(factor(self.hparams, step, steps)) for steps in (before, total))
        if not math.isclose(old, new, rel_tol=1e-3):
            self.warn(
                f"the schedule is stretched from {before} to {total} steps: its factor at step "
                f"{step} was {old:.3g} and is now {new:.3g}"
            )


def overview(trials: Sequence[Trial], step: int) -> Line:
    """Return a line about trials that train side by side: how far they are, and the best of them.

    It holds counts of `trials` and of those that have `diverged`, the sum of their
    `examples_per_second`, and the best value so far of the monitored metric, under its name.
    """
    best, experiment = trials[0].best, trials[0].setup.experiment
    name = f"val/{best.metric}"
    values = [trial.best.line[name] for trial in trials if name in trial.best.line]
    return {
        "step": step,
        "total_steps": experiment.total_steps,
        "epoch": step / experiment.steps_per_epoch,
        "trials": len(trials),
        "diverged": sum(trial.diverged_at is not None for trial in trials),
        "examples_per_second": sum(trial.line.get("examples_per_second", 0.0) for trial in trials),
    } | ({name: (min if best.mode == "min" else max)(values)} if values else {})
