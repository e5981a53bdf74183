"""The keys of a config that say how to train: the groups `trainer`, `population` and `lr_range`.

And the checks of the length that a run has by them, and what may surprise in a config.
"""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from experiments.core.config import build, leaves
from experiments.data.dataset import resolve_batch_size
from experiments.errors import UserError
from experiments.machine import called
from experiments.training.metrics import Periods
from experiments.types import NonNegative, NonNegativeInt, Positive, PositiveInt, Seed

if TYPE_CHECKING:
    from experiments.core.experiment import Experiment
# the keys that a lesson of the lab book reads, beside `lesson` and `cluster`
OF_LESSON = (
    *("experiment", "mode", "name", "overwrite", "nodes", "allow", "trainer.compilation_cache"),
)


@dataclass(frozen=True)
class Trainer:
    """The length, precision and limits of a training, and what it saves and draws.

    Args:
      epochs: passes over the training split.
      steps: the length in steps, in the place of `epochs` (null: as many as these are).
      steps_per_epoch: cut every epoch off after so many steps (null: the whole split).
      eval_every: steps from one evaluation to the next, whatever the epochs (null: an epoch).
        Such a period is what patience, `keep_every`, `target_loss`, diagnostics and callbacks count
        in, and the pruning of a study. The last step is evaluated in any case.
      eval_batches: cut every evaluation off after so many batches (null: the whole split).
      log_every: steps whose mean makes one line of metrics.
      precision: of activations and of the gradient computation; parameters and losses stay fp32.
      matmul_precision: of matrix products and convolutions of float32, as JAX names it, on every
        device: `highest` is float32; `default` is TF32 on NVIDIA's GPUs since Ampere and bfloat16
        on TPUs, `high` at best three such products (null: what JAX_DEFAULT_MATMUL_PRECISION says,
        or the default).
      deterministic: a GPU gives the same numbers each time, bit for bit, by operations that may be
        slower; a processor and a TPU do anyway.
      remat: compute the inside of a deep network's blocks again in the backward pass, which takes
        less memory and about a third more time.
      units: of a loss that is a log-likelihood, and of what it is made of, in all that is logged;
        `target_loss` is in them too.
      devices: local devices that share each batch of a trial (null: all, or one where a step is
        small). Trials side by side are spread over groups of so many (null: each trial has one
        device, or is divided among all).
      sharding: whether each of these holds the whole of a trial's state, or a part of it.
      shuffle_seed: of the order of the training data (null: the run's seed).
      monitor: validation metric that says which epoch is best (null: the objective's own).
      monitor_mode: whether it should be small or large (null: the objective's own).
      patience: evaluations without a better value after which the run stops early (null: never).
      min_delta: what a value has to be better by for patience to count it; the best weights are
        those of the best value in any case.
      on_nan: end a run whose loss or gradient is not finite, or skip such updates.
      max_time: seconds of training after which the run stops (null: no limit).
      target_loss: mean training loss of a period at which the run stops (null: none); where layers
        are trained one by one, of a period of all of them together.
      max_steps_per_dispatch: most steps handed to the device at once.
      checkpoints: save what is needed to resume, evaluate and reuse the run.
      checkpoint_every: seconds between checkpoints (null: only at the end).
      keep_every: evaluations between checkpoints that stay for good (null: the newest two and the
        best weights alone stay). Of trials side by side each has its own, and the stack that they
        share is saved as well.
      keep_best: so many of the evaluations with the best values keep a checkpoint, while they are
        among these (null: the best weights alone stay); like `keep_every`.
      profile_steps: steps recorded by the JAX profiler (0: none), and what is left of the last
        dispatch. The trace is in `profile/` of the run folder; of trials side by side there is one
        in `populations/<name>/profile/` of their study.
      debug_nans: when a run diverges, play that step again and name the first operation that gives
        a NaN or, where none does, an infinity.
      diagnostics: log numbers of each layer before the first and after every period, at the price
        of a step or two.
      diagnostics_every: fewest steps from one such look to the next: of shorter periods not every
        one is followed by one, but the last.
      compilation_cache: folder of compiled programs (null: the user's cache folder, "": none).
      figures: draw figures: of every trial, of none, or of the best alone, that is of a run by
        itself and of the winner of a study.
    """

    epochs: PositiveInt
    steps: PositiveInt | None
    steps_per_epoch: PositiveInt | None
    eval_every: PositiveInt | None
    eval_batches: PositiveInt | None
    log_every: PositiveInt
    precision: Literal["fp32", "bf16"]
    matmul_precision: Literal["default", "high", "highest"] | None
    deterministic: bool
    remat: bool
    units: Literal["nats", "bits"]
    devices: PositiveInt | None
    sharding: Literal["replicated", "fsdp"]
    shuffle_seed: Seed | None
    monitor: str | None
    monitor_mode: Literal["min", "max"] | None
    patience: PositiveInt | None
    min_delta: NonNegative
    on_nan: Literal["stop", "skip"]
    max_time: Positive | None
    target_loss: NonNegative | None
    max_steps_per_dispatch: PositiveInt
    checkpoints: bool
    checkpoint_every: NonNegative | None
    keep_every: PositiveInt | None
    keep_best: PositiveInt | None
    profile_steps: NonNegativeInt
    debug_nans: bool
    diagnostics: bool
    diagnostics_every: PositiveInt
    compilation_cache: str | None
    figures: bool | Literal["best"]

    def periods(self, steps_per_epoch: int) -> Periods:
        """Return the periods of a run whose epochs have so many steps."""
        total = self.steps or self.epochs * steps_per_epoch
        return Periods(self.eval_every or steps_per_epoch, total, self.log_every)


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


def check_trains(config: Mapping[str, Any]) -> None:
    """Raise `UserError` where a training has no length, and say what evaluates weights as they are.

    Args:
        config: as it was composed, before its types are checked.
    """
    for key in ("epochs", "steps"):
        if config["trainer"].get(key) == 0:
            weights = shlex.quote(f"model.pretrained={config['model'].get('pretrained') or '...'}")
            raise UserError(
                f"trainer.{key}=0: a training has one at least; for weights as they are:\n"
                f"{called('run')} mode=evaluate {weights} (so too mode=predict, export, sample)"
            )


def check_said(arguments: Iterable[str], config: Mapping[str, Any]) -> None:
    """Check that no argument says what would make no difference.

    That is the epochs of a run whose length is said in steps, and all but the own keys of a lesson.

    Raises:
        UserError: one does.
    """
    if config.get("mode") == "lesson":
        _check_of_lesson(arguments, config["lesson"] or {})
    steps = config["trainer"]["steps"]
    said = [a for a in arguments if a.lstrip("+").partition("=")[0] == "trainer.epochs"]
    if said and steps is not None:
        raise UserError(
            f"{said[0].lstrip('+')}: the length of the run is trainer.steps={steps}; "
            "change that, or say trainer.steps=null too"
        )


def _check_of_lesson(arguments: Iterable[str], lesson: Mapping[str, Any]) -> None:
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        read = key in OF_LESSON or key.partition(".")[0] in ("lesson", "cluster")
        if not read and argument != "logger=none":  # which a lesson is in any case
            own = ", ".join(f"lesson.{name}" for name in lesson if name != "_target_")
            raise UserError(
                f"{argument}: a lesson does not read this; its own keys are {own}, and smaller "
                "ones make it quick"
            )


def check_lengths(config: Mapping[str, Any], steps_per_epoch: float = math.inf) -> None:
    """Check that a run is as long as what is to happen in it.

    Args:
        config: of a run that is to be trained.
        steps_per_epoch: as many as there are data for.

    Raises:
        UserError: a warm-up is longer than the run, a layer is never trained, or the weights are
            never updated.
    """
    trainer, schedule = config["trainer"], config["schedule"]
    of_epoch = min(steps_per_epoch, trainer["steps_per_epoch"] or math.inf)
    epochs, steps, unit = trainer["epochs"], trainer["epochs"] * of_epoch, "epochs"
    if trainer["steps"] is not None:
        steps, unit = trainer["steps"], "steps"
        epochs = steps / of_epoch or math.inf  # which is that nobody knows
    if trainer["steps"] == 1 or trainer["epochs"] == trainer["steps_per_epoch"] == 1:
        return  # to see whether it runs at all: debug=fast
    in_epochs = schedule.get("unit") == "epochs"
    layers = layers_of(config)
    wanted = [
        ("schedule.warmup", 1, in_epochs),
        ("objective.warmup_epochs", 1, True),
        ("objective.epochs_a_layer", layers, True),
        ("optim.accumulate", 1, False),
        ("discriminator_optim.accumulate", 1, False),
    ]
    for key, times, counts_epochs in wanted:
        group, name = key.split(".")
        value = (config.get(group) or {}).get(name) or 0
        length, of = (epochs, "epochs") if counts_epochs else (steps, "steps")
        if times * value > length:
            each = f", of {times} layers each" if times > 1 else ""
            raise UserError(
                f"{key}={value}{each}: the run has {length:g} {of}; say trainer.{unit}=..."
            )


def layers_of(config: Mapping[str, Any]) -> int:
    """Return the layers that `objective.epochs_a_layer` trains one after the other."""
    hidden = config["model"].get("hidden")
    return 1 + len(hidden) if isinstance(hidden, list) else 1


def check_sizes(config: Mapping[str, Any]) -> None:
    """Check batches and lengths by the description of the data, which is all that is read.

    Raises:
        UserError: a batch is more than the data, or what `check_lengths` says.
    """
    data = build(config["data"])
    steps, examples = math.inf, data.spec.train_examples
    if examples is not None and data.batch_size != "auto":
        steps = examples // resolve_batch_size(data.batch_size, examples)
    check_lengths(config, steps)


def surprises(experiment: "Experiment", *, training: bool) -> Iterator[str]:
    """Yield a line for each thing that a config does and its user may not expect."""
    config = experiment.config
    stored, seen = tuple(experiment.spec.input_shape), experiment.input_shape
    if stored != seen:
        small, large = ("x".join(map(str, shape[:2])) for shape in (stored, seen))
        name = config["model"]["_target_"].rsplit(".", 1)[-1]
        yield f"{name} needs larger images: {small} is resized to {large}"
    mirrors = (config["data"].get("augment") or {}).get("flip")
    if (tta := experiment.tta) in ("flip", "ten_crop") and not mirrors:
        said = "averages over mirror images, the training did not: wrong for digits and letters"
        yield f"eval.tta={tta} {said}"
    if training and "step" in (value for _, value in leaves(config["model"])):
        said = "straight-through estimate: the derivative, which is 0, counts as 1"
        yield f"the gradient through an activation `step` is a {said}"
    trainer = config["trainer"]
    if training and trainer.get("min_delta") and trainer["patience"] is None:
        yield "trainer.min_delta changes nothing without trainer.patience"
    if training and config["data"]["batch_size"] == 1:
        from experiments.core.transfer import named  # imports JAX

        statistics = experiment.weights(experiment.abstract_state({}))[1]
        if any(name.endswith(".var") for name in named(statistics)):
            yield (
                "data.batch_size=1: batch normalisation sees one example at a time, but evaluates "
                "by averages over many; use a larger batch"
            )
