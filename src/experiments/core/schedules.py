"""Learning-rate schedules: the factor of the learning rate at every time of a run.

Each schedule is a function of the time `t` and the run's `total` length, both in epochs or both
in steps as its `unit` says, and returns a factor; 1 leaves the optimizer's own learning rate. Time
and every setting may be traced, so that one compiled program serves them all. With a `warmup` the
factor grows from 0 in proportion to the time, and then the schedule is that of the rest of the run.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.types import Fraction, NonNegative, Positive, is_off

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
