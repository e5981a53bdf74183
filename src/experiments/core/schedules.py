"""Learning-rate schedules: the factor of the learning rate at every time of a run.

Each schedule is a function of the time `t` and the run's `total` length, both in epochs or both
in steps as its `unit` says, and returns a factor; 1 leaves the optimizer's own learning rate. Time
and every setting may be traced, so that one compiled program serves them all. With a `warmup` the
factor grows from 0 in proportion to the time, and then the schedule is that of the rest of the run.

`ReduceOnPlateau` follows the validation, of which a program knows nothing: the factor that comes of
it is an input, `SCALE`, which the host sets between two evaluations.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.core.names import locate
from experiments.errors import UserError
from experiments.types import Bound, Fraction, NonNegative, NonNegativeInt, Positive, is_off

SCALE = "schedule.scale"
Unit = Literal["epochs", "steps"]
Factor = Callable[..., jax.Array]  # (step, steps_per_epoch, total_steps) -> factor


def epochs(step, steps_per_epoch):
    """Return the epochs that so many steps are, in fractions, and whole ones exactly.

    XLA divides by a constant as it multiplies by its inverse, so that 7 / 7 is less than 1.
    """
    whole, rest = divmod(step, steps_per_epoch)
    return whole + rest / steps_per_epoch


def schedule(function: Callable) -> Callable[..., Factor]:
    """Make `function(t, total, **settings)` configurable, with lengths in epochs or in steps."""

    @functools.wraps(function)
    def configure(*, unit: str, warmup: Any = 0.0, **settings) -> Factor:
        def factor(step, steps_per_epoch, total_steps) -> jax.Array:
            length = steps_per_epoch if unit == "epochs" else 1
            t, total = epochs(step, length), total_steps / length
            if is_off(warmup):
                return jnp.asarray(function(t, total, **settings))
            since, rest = jnp.maximum(t - warmup, 0), jnp.maximum(total - warmup, 1e-9)
            return jnp.minimum(t / warmup, 1) * function(since, rest, **settings)

        return factor

    # the signature against which a config is checked: not t and total
    keyword = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    own = [keyword("unit", annotation=Unit), keyword("warmup", annotation=NonNegative, default=0.0)]
    settings = [*own, *list(inspect.signature(function).parameters.values())[2:]]
    if taken := {one.name for one in own} & {one.name for one in settings[len(own) :]}:
        raise UserError(
            f"schedule {function.__name__}: every schedule has a key {min(taken)} already; "
            "give the argument another name"
        )
    configure.__signature__ = inspect.Signature(settings)  # type: ignore[attr-defined]
    configure.__annotations__ = {p.name: p.annotation for p in settings}
    return configure


@schedule
def constant(t, total):
    """Return 1 at all times."""
    return 1.0


@schedule
def step(t, total, *, every: Positive, gamma: Fraction):
    """Return gamma ** floor(t / every): a drop at every multiple of `every`."""
    return gamma ** jnp.floor(t / every)


@schedule
def exponential(t, total, *, every: Positive, gamma: Fraction):
    """Return gamma ** (t / every): a continuous decay."""
    return gamma ** (t / every)


@schedule
def linear(t, total, *, final: NonNegative):
    """Return a straight line from 1 to `final` over the run."""
    return 1 + (final - 1) * jnp.clip(t / total, 0, 1)


@schedule
def polynomial(t, total, *, power: Positive, final: NonNegative):
    """Return final + (1 - final) (1 - t/total)^power, "poly" decay (Liu et al. 2015, ParseNet)."""
    return final + (1 - final) * (1 - jnp.clip(t / total, 0, 1)) ** power


@schedule
def cosine(t, total, *, final: NonNegative):
    """Return half a cosine from 1 to `final`.

    References:
      Loshchilov & Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", eq. 5,
      without restarts.
    """
    return _cosine(t / total, final)


@schedule
def one_cycle(t, total, *, peak: Fraction, start: NonNegative, final: NonNegative):
    """Return a cosine from `start` up to 1 at the fraction `peak` of the run, one down to `final`.

    References:
      Smith & Topin 2018, arXiv:1708.07120: the learning-rate part of the 1cycle policy.
    """
    x = t / total
    rise = start + (1 - start) * (1 - _cosine(x / jnp.maximum(peak, 1e-9), 0.0))
    fall = _cosine((x - peak) / jnp.maximum(1 - peak, 1e-9), final)
    return jnp.where(x < peak, rise, fall)


def _cosine(x, final):
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(x, 0, 1)))


class Plateau(NamedTuple):
    """What is known of a run's metric after an evaluation, and the factor that comes of it."""

    scale: float = 1.0
    best: float | None = None
    stale: int = 0  # evaluations since then that count
    waiting: int = 0  # evaluations that are left of the cooldown


@dataclass(frozen=True, kw_only=True)
class ReduceOnPlateau:
    """A learning rate that is lowered when the monitored metric no longer improves.

    It is PyTorch's `ReduceLROnPlateau`, but that no reduction is too small to be made.

    Args:
      unit, warmup: as of any schedule.
      factor: of each reduction.
      patience: evaluations without improvement after which the next such one reduces.
      threshold: what an improvement is better by, as a share of the best value ("rel") or "abs".
      cooldown: evaluations after a reduction that are not counted as without improvement.
      min_learning_rate: that is not gone below.
    """

    unit: Unit
    warmup: NonNegative
    factor: Annotated[float, Bound("greater than", 0), Bound("less than", 1)]
    patience: NonNegativeInt
    threshold: NonNegative
    threshold_mode: Literal["rel", "abs"]
    cooldown: NonNegativeInt
    min_learning_rate: NonNegative

    def __call__(self, step, steps_per_epoch, total_steps) -> jax.Array:
        """Return the factor of the warm-up alone."""
        return constant(unit=self.unit, warmup=self.warmup)(step, steps_per_epoch, total_steps)

    def after(self, seen: Plateau, value: float, mode: str, learning_rate: float) -> Plateau:
        """Return what is known after one more evaluation.

        Args:
          seen: what was known before.
          value: of the metric.
          mode: "min" or "max", the direction in which it gets better.
          learning_rate: of the optimizer, before any reduction.
        """
        scale, best, stale, waiting = seen
        better = self._improves(value, best, mode)
        best, stale = (value, 0) if better else (best, stale + 1)
        if waiting:
            stale, waiting = 0, waiting - 1
        if stale > self.patience:
            lowest = self.min_learning_rate / learning_rate if learning_rate else 0.0
            scale = min(scale, max(scale * self.factor, lowest))
            stale, waiting = 0, self.cooldown
        return Plateau(scale, best, stale, waiting)

    def _improves(self, value: float, best: float | None, mode: str) -> bool:
        if best is None or not math.isfinite(value):
            return math.isfinite(value)
        by = self.threshold * (best if self.threshold_mode == "rel" else 1)
        return value > best + by if mode == "max" else value < best - by


def scale_of(node: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the input that the host sets, if this is the config of a schedule that needs it."""
    follows = node and hasattr(locate(node["_target_"]), "after")
    return {SCALE: 1.0} if follows else {}
