"""Schedules at the points that define them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.config import build
from experiments.core.schedules import Plateau, epochs, schedule
from experiments.errors import UserError
from support import choices, composed


def factor(name, step, *settings, steps_per_epoch=10, total=100):
    made = build(composed(f"schedule={name}", *settings)["schedule"])
    return float(made(step, steps_per_epoch, total))


@pytest.mark.parametrize(
    ("name", "settings", "step", "expected"),
    [
        ("constant", [], 57, 1.0),
        ("step", ["schedule.every=2", "schedule.gamma=0.5"], 19, 0.5**0),
        ("step", ["schedule.every=2", "schedule.gamma=0.5"], 40, 0.5**2),
        ("step", ["schedule.every=5", "schedule.unit=steps", "schedule.gamma=0.5"], 12, 0.5**2),
        ("exponential", ["schedule.every=1", "schedule.gamma=0.9"], 25, 0.9**2.5),
        ("linear", ["schedule.final=0.2"], 50, 0.6),
        ("polynomial", ["schedule.power=2", "schedule.final=0"], 50, 0.25),
        ("cosine", ["schedule.final=0"], 50, 0.5),
        ("cosine", ["schedule.final=0.1"], 100, 0.1),
        ("warmup_cosine", ["schedule.warmup=2"], 10, 0.5),
        ("warmup_cosine", ["schedule.warmup=2"], 20, 1.0),
        ("warmup_cosine", ["schedule.warmup=2"], 60, 0.5),
        ("constant", ["schedule.warmup=2"], 5, 0.25),
        ("constant", ["schedule.warmup=2"], 20, 1.0),
        ("step", ["schedule.warmup=2", "schedule.every=2"], 39, 1.0),
        ("step", ["schedule.warmup=2", "schedule.every=2"], 40, 0.1),
        ("linear", ["schedule.warmup=20", "schedule.unit=steps"], 60, 0.5),
        ("one_cycle", ["schedule.warmup=2", "schedule.start=0.5"], 10, 0.25),
        ("reduce_on_plateau", ["schedule.warmup=2"], 10, 0.5),
        ("reduce_on_plateau", ["schedule.warmup=2"], 90, 1.0),
        ("one_cycle", ["schedule.peak=0.3", "schedule.start=0.04"], 0, 0.04),
        ("one_cycle", ["schedule.peak=0.3"], 30, 1.0),
        ("one_cycle", ["schedule.final=0.01"], 100, 0.01),
    ],
)
def test_factor(name, settings, step, expected):
    assert factor(name, step, *settings) == pytest.approx(expected, abs=1e-6)


def test_an_epoch_ends_with_its_last_step_whatever_its_length():
    for length in (7, 13, 47):  # whose inverses in float32 are too small
        whole = jax.jit(lambda step, length=length: epochs(step, length))(jnp.int32(3 * length))
        assert whole == 3


@pytest.mark.parametrize("name", choices("schedule"))
def test_every_schedule_stays_between_0_and_1_and_can_be_traced(name):
    node = composed(f"schedule={name}")["schedule"]

    def factor(step, warmup):
        return build(node | {"warmup": warmup})(step, 10, 100)

    for warmup in (0.0, jnp.float32(1.5)):  # in epochs of 10 steps
        factors = jax.jit(jax.vmap(functools.partial(factor, warmup=warmup)))(jnp.arange(101))
        assert (factors >= 0).all()
        assert (factors <= 1 + 1e-6).all()
        if warmup:
            np.testing.assert_allclose(factors[:16], factors[15] * np.arange(16) / 15, rtol=1e-5)


def lowered(values, mode="min", rate=1.0, **settings):
    """The learning rate after each evaluation."""
    names = [f"schedule.{name}={value}" for name, value in settings.items()]
    schedule = build(
        composed("schedule=reduce_on_plateau", "schedule.threshold=0.01", *names)["schedule"]
    )
    seen, rates = Plateau(), []
    for value in values:
        seen = schedule.after(seen, value, mode, rate)
        rates.append(rate * seen.scale)
    return rates


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [  # as PyTorch documents ReduceLROnPlateau, and as it does
        # with patience 2 the third evaluation without improvement reduces
        ([5, 4, 4, 4, 4, 4], {"patience": 2}, [1, 1, 1, 1, 0.1, 0.1]),
        # a relative threshold of 0.01: 3.97 is no improvement on 4, 3.95 is
        ([4, 3.97, 3.95, 3.92], {"patience": 0}, [1, 0.1, 0.1, 0.01]),
        ([4, 3.97, 3.95, 3.92], {"patience": 0, "threshold_mode": "abs"}, [1, 1, 1, 1]),
        # the largest is the best: 0.505 is no improvement on 0.5, 0.51 is
        ([0.5, 0.505, 0.51], {"patience": 0, "mode": "max"}, [1, 0.1, 0.1]),
        # nothing is counted for two evaluations after a reduction
        ([4, 4, 4, 4, 4], {"patience": 0, "cooldown": 2}, [1, 0.1, 0.1, 0.1, 0.01]),
        ([4, 4, 4, 4], {"patience": 0, "min_learning_rate": 0.05}, [1, 0.1, 0.05, 0.05]),
        ([float("nan"), 4, float("nan"), 3], {"patience": 1, "factor": 0.5}, [1, 1, 1, 1]),
        ([float("nan"), float("nan"), 4], {"patience": 1, "factor": 0.5}, [1, 0.5, 0.5]),
    ],
)
def test_a_rate_is_lowered_where_pytorch_lowers_it(values, options, expected):
    assert lowered(values, **options) == pytest.approx(expected)


def test_an_argument_that_every_schedule_has_is_refused():
    with pytest.raises(UserError, match="schedule ramp: every schedule has a key warmup already"):

        @schedule
        def ramp(t, total, *, warmup):
            return t / warmup
