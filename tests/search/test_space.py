"""Draws have the distributions that W&B documents."""

import math

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.search.methods import Streams
from experiments.search.plan import Plan
from experiments.search.readers import DISTRIBUTIONS, read_parameter
from experiments.search.space import Space

DRAWS = 2000


def draws(node: dict) -> np.ndarray:
    """Return what random search draws for a parameter in the first trials."""
    plan = Plan("", {}, [], ["val/loss"], ["minimize"], DRAWS)
    parameter = read_parameter(node)
    streams = Streams(plan, Space({"x": parameter}, None))
    return np.array([parameter.finish(parameter.at(streams.uniform("x", i))) for i in range(DRAWS)])


@pytest.fixture
def stats():
    from scipy import stats  # takes a second to import, in each process that runs tests

    return stats


@pytest.mark.parametrize(
    ("node", "family", "parameters"),
    [
        ({"min": 0.5, "max": 2.0}, "uniform", (0.5, 1.5)),
        (
            {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2},
            *("loguniform", (1e-6, 1e-2)),
        ),
        (
            {"distribution": "log_uniform", "min": -9, "max": -2},
            *("loguniform", (math.exp(-9), math.exp(-2))),
        ),
        (
            {"distribution": "inv_log_uniform_values", "min": 1e-3, "max": 10.0},
            *("loguniform", (1e-3, 10.0)),
        ),
        (
            {"distribution": "inv_log_uniform", "min": 2, "max": 9},
            *("loguniform", (math.exp(-9), math.exp(-2))),
        ),
        ({"mu": 3.0, "sigma": 0.5}, "norm", (3, 0.5)),
        ({"distribution": "normal"}, "norm", (0, 1)),
        (
            {"distribution": "log_normal", "mu": -4, "sigma": 2},
            *("lognorm", (2, 0, math.exp(-4))),
        ),
    ],
    ids=lambda v: v.get("distribution", "implied") if isinstance(v, dict) else "",
)
def test_continuous_draws_pass_a_kolmogorov_smirnov_test(stats, node, family, parameters):
    assert stats.kstest(draws(node), family, parameters).pvalue > 0.01


def test_whole_numbers_and_weighted_choices_have_their_probabilities(stats):
    whole = draws({"min": 1, "max": 4})
    assert stats.chisquare([np.sum(whole == i) for i in (1, 2, 3, 4)]).pvalue > 0.01
    weighted = draws({"values": [1, 2], "probabilities": [0.9, 0.1]})
    assert stats.chisquare([np.sum(weighted == i) for i in (1, 2)], [1800, 200]).pvalue > 0.01
    even = draws({"values": ["a", "b", "c"]})
    assert stats.chisquare([np.sum(even == c) for c in "abc"]).pvalue > 0.01


@pytest.mark.parametrize("kind", [k for k in DISTRIBUTIONS if k.startswith("q_")])
def test_quantised_draws_are_multiples_of_q(kind):
    ends = {"mu": 2, "sigma": 1} if "normal" in kind else {"min": 1, "max": 4}
    values = draws({"distribution": kind, **ends, "q": 0.25})
    assert np.allclose(values % 0.25, 0)
    assert len(np.unique(values)) > 5
    plain = {"distribution": kind.removeprefix("q_"), **ends}
    assert np.max(np.abs(values - draws(plain))) <= 0.125 + 1e-4 * np.max(values)


def test_a_quantum_of_one_gives_whole_numbers():
    value = read_parameter({"distribution": "q_log_uniform_values", "min": 8, "max": 512})
    drawn = value.finish(value.at(0.5))
    assert drawn == 64
    assert isinstance(drawn, int)


def test_each_parameter_has_a_stream_of_its_own():
    plan = Plan("", {}, [], ["val/loss"], ["minimize"], DRAWS)
    streams = Streams(plan, Space({}, None))
    a, b = ([streams.uniform(name, i) for i in range(DRAWS)] for name in ("a", "b"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08
    other = Streams(Plan("", {}, [], ["val/loss"], ["minimize"], DRAWS, seed=1), Space({}, None))
    assert other.uniform("a", 0) != a[0]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"distribution": "log_uniform_values", "min": 0, "max": 1.0}, "must lie above 0"),
        ({"distribution": "log_uniform_values", "min": "1e-5", "max": 1.0}, "write 1.0e-5"),
        ({"values": ["2.5E6"]}, "write 2.5e+6"),
        ({"distribution": "log_uniform", "min": 0, "max": 1000}, "log_uniform_values"),
        ({"min": 2, "max": 1}, "min=2 must be less than max=1"),
        ({"min": 1}, "needs value, values, min and max"),
        ({"minn": 1, "max": 2}, "did you mean 'min'"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "add up to 1.1"),
        ({"values": []}, "at least one"),
        ({"distribution": "lognormal"}, "did you mean 'log_normal'"),
        (
            {"distribution": "uniform", "min": 0, "max": 1, "q": 1},
            "uniform takes min, max, not 'q'",
        ),
        ({"distribution": "normal", "sigma": 0}, "sigma=0 must be greater than 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(node, words):
    with pytest.raises(UserError) as error:
        read_parameter(node)
    assert words in str(error.value)
