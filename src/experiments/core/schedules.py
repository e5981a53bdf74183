"""Learning-rate schedules: the factor of the learning rate at every time of a run.

Each schedule is a function of the time `t` and the run's `total` length, both in epochs or both
in steps as its `unit` says, and returns a factor; 1 leaves the optimizer's own learning rate. Time
and every setting may be traced, so that one compiled program serves them all.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from experiments.types import Fraction, NonNegative, Positive

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
    def configure(*, unit: str, **settings) -> Factor:
        def factor(step, steps_per_epoch, total_steps) -> jax.Array:
            length = steps_per_epoch if unit == "epochs" else 1
            return jnp.asarray(function(epochs(step, length), total_steps / length, **settings))

        return factor

    # the signature against which a config is checked: the unit and the settings, not t and total
    unit = inspect.Parameter(
        "unit", inspect.Parameter.KEYWORD_ONLY, annotation=Literal["epochs", "steps"]
    )
    settings = list(inspect.signature(function).parameters.values())[2:]
    configure.__signature__ = inspect.Signature([unit, *settings])  # type: ignore[attr-defined]
    configure.__annotations__ = {p.name: p.annotation for p in [unit, *settings]}
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
def warmup_cosine(t, total, *, warmup: NonNegative, final: NonNegative):
    """Return a line from 0 to 1 during `warmup`, then half a cosine down to `final`."""
    rise = t / jnp.maximum(warmup, 1e-9)
    fall = _cosine((t - warmup) / jnp.maximum(total - warmup, 1e-9), final)
    return jnp.where(t < warmup, rise, fall)


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
