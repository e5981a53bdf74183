"""Learning-rate schedules: the factor by which the learning rate is multiplied over a run.

Each schedule is a function of the time `t` and the run's `total` length, both in epochs or both
in steps as its `unit` says, and returns a factor (1 is the optimizer's own learning rate). Time and
every setting may be traced, so one compiled program serves them all.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from experiments.types import Fraction, NonNegative, Positive

Factor = Callable[..., jax.Array]  # (step, steps_per_epoch, total_steps) -> factor


def schedule(function: Callable) -> Callable[..., Factor]:
    """Makes `function(t, total, **settings)` configurable, with lengths in epochs or in steps."""

    @functools.wraps(function)
    def configure(*, unit: str, **settings) -> Factor:
        def factor(step, steps_per_epoch, total_steps) -> jax.Array:
            length = steps_per_epoch if unit == "epochs" else 1
            return jnp.asarray(function(step / length, total_steps / length, **settings))

        return factor

    # what a config may say: the unit and the function's settings, without t and total
    unit = inspect.Parameter(
        "unit", inspect.Parameter.KEYWORD_ONLY, annotation=Literal["epochs", "steps"]
    )
    settings = list(inspect.signature(function).parameters.values())[2:]
    configure.__signature__ = inspect.Signature([unit, *settings])  # type: ignore[attr-defined]
    configure.__annotations__ = {p.name: p.annotation for p in [unit, *settings]}
    return configure


@schedule
def constant(t, total):
    """1 throughout."""
    return 1.0


@schedule
def step(t, total, *, every: Positive, gamma: Fraction):
    """gamma ** floor(t / every): a drop at every multiple of `every`."""
    return gamma ** jnp.floor(t / every)


@schedule
def exponential(t, total, *, every: Positive, gamma: Fraction):
    """gamma ** (t / every): the same decay without stairs."""
    return gamma ** (t / every)


@schedule
def linear(t, total, *, final: NonNegative):
    """From 1 to `final` in a straight line over the run."""
    return 1 + (final - 1) * jnp.clip(t / total, 0, 1)


@schedule
def polynomial(t, total, *, power: Positive, final: NonNegative):
    """final + (1 - final) (1 - t/total)^power, "poly" decay (Liu et al. 2015, ParseNet)."""
    return final + (1 - final) * (1 - jnp.clip(t / total, 0, 1)) ** power


@schedule
def cosine(t, total, *, final: NonNegative):
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, SGDR, eq. 5, no restarts)."""
    return _cosine(t / total, final)


@schedule
def warmup_cosine(t, total, *, warmup: NonNegative, final: NonNegative):
    """A line from 0 to 1 during `warmup`, then half a cosine down to `final`."""
    rise = t / jnp.maximum(warmup, 1e-9)
    fall = _cosine((t - warmup) / jnp.maximum(total - warmup, 1e-9), final)
    return jnp.where(t < warmup, rise, fall)


@schedule
def one_cycle(t, total, *, peak: Fraction, start: NonNegative, final: NonNegative):
    """Cosine up from `start` to 1 at the fraction `peak` of the run, cosine down to `final`.

    The learning-rate part of the 1cycle policy (Smith & Topin 2018, arXiv:1708.07120).
    """
    x = t / total
    rise = start + (1 - start) * (1 - _cosine(x / jnp.maximum(peak, 1e-9), 0.0))
    fall = _cosine((x - peak) / jnp.maximum(1 - peak, 1e-9), final)
    return jnp.where(x < peak, rise, fall)


def _cosine(x, final):
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(x, 0, 1)))
