"""The keys of a config that say how to train: the groups `trainer`, `population` and `lr_range`."""

from dataclasses import dataclass
from typing import Literal

from experiments.types import NonNegative, NonNegativeInt, Positive, PositiveInt, Seed


@dataclass(frozen=True)
class Trainer:
    """The length, precision and limits of a training, and what it saves and draws.

    Args:
      epochs: passes over the training split.
      steps_per_epoch: cut every epoch off after so many steps (null: the whole split).
      eval_batches: cut every evaluation off after so many batches (null: the whole split).
      log_every: steps whose mean makes one line of metrics.
      precision: of activations and of the gradient computation; parameters and losses stay fp32.
      units: of a loss that is a log-likelihood, and of what it is made of, in all that is logged;
        `target_loss` is in them too.
      devices: data-parallel local devices (null: as many as divide the batch evenly).
      shuffle_seed: of the order of the training data (null: the run's seed).
      monitor: validation metric that says which epoch is best (null: the objective's own).
      monitor_mode: whether it should be small or large (null: the objective's own).
      patience: epochs without a better value after which the run stops early (null: never).
      on_nan: end a run whose loss or gradient is not finite, or skip such updates.
      max_time: seconds of training after which the run stops (null: no limit).
      target_loss: training loss of an epoch at which the run stops (null: none).
      max_steps_per_dispatch: most steps handed to the device at once.
      checkpoints: save what is needed to resume, evaluate and reuse the run.
      checkpoint_every: seconds between checkpoints (null: only at the end).
      keep_every: epochs between checkpoints that stay for good (null: the newest two and the
        best weights alone stay). Of trials side by side each has its own, and the stack that they
        share is saved as well.
      profile_steps: steps recorded by the JAX profiler (0: none), and what is left of the last
        dispatch. The trace is in `profile/` of the run folder; of trials side by side there is one
        in `populations/<name>/profile/` of their study.
      debug_nans: when a run diverges, play that step again and name the first operation that gives
        a NaN or, where none does, an infinity.
      diagnostics: log numbers of each layer before the first and after every epoch, at the price of
        a step; of epochs shorter than `training.stack.APART` steps not after every one.
      compilation_cache: folder of compiled programs (null: the user's cache folder, "": none).
      figures: draw figures: of every trial, of none, or of the best alone, that is of a run by
        itself and of the winner of a study.
    """

    epochs: PositiveInt
    steps_per_epoch: PositiveInt | None
    eval_batches: PositiveInt | None
    log_every: PositiveInt
    precision: Literal["fp32", "bf16"]
    units: Literal["nats", "bits"]
    devices: PositiveInt | None
    shuffle_seed: Seed | None
    monitor: str | None
    monitor_mode: Literal["min", "max"] | None
    patience: PositiveInt | None
    on_nan: Literal["stop", "skip"]
    max_time: Positive | None
    target_loss: NonNegative | None
    max_steps_per_dispatch: PositiveInt
    checkpoints: bool
    checkpoint_every: NonNegative | None
    keep_every: PositiveInt | None
    profile_steps: NonNegativeInt
    debug_nans: bool
    diagnostics: bool
    compilation_cache: str | None
    figures: bool | Literal["best"]


@dataclass(frozen=True)
class Options:
    """The way in which the trials of a population share a program.

    Args:
      shared_batches: all see the data in the order of the first one's seed; else each has the order
        of its own seed, as it would alone.
      width: trials computed as one batched computation (null: the fastest, by timing).
      most: trials on the device at once (null: all that a worker took).
    """

    shared_batches: bool
    width: PositiveInt | None
    most: PositiveInt | None


@dataclass(frozen=True)
class LrRange:
    """The keys of `lr_range`.

    Args:
      low, high: the ends of the log range.
      rates: number of learning rates in it, evenly spaced on a log axis.
      epochs: that each of them trains.
    """

    low: Positive
    high: Positive
    rates: PositiveInt
    epochs: PositiveInt
