"""Configs are checked against the code that they are meant for."""

import itertools

import pytest
from omegaconf import OmegaConf

from experiments.core.config import build, check, mismatch, place
from experiments.errors import UserError
from experiments.types import Decay, Fraction, Positive, PositiveInt
from support import by_hydra, choice_alone, choices

GROUPS = ["data", "loss", "optim", "schedule", "init", "logger", "model", "trainer", "objective"]
PARTS = 3


@pytest.mark.parametrize(  # other tests compose each choice too, most of them without Hydra
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))]
)
def test_every_shipped_choice_composes_and_passes_the_check(part):
    # a choice of each group at a time, since composing takes long
    for chosen in list(itertools.zip_longest(*map(choices, GROUPS)))[part::PARTS]:
        overrides = [f"{group}={c}" for group, c in zip(GROUPS, chosen, strict=True) if c]
        extra = ["data.name=x"] if "data=tfds" in overrides else []
        whole = by_hydra((*overrides, *extra))
        check(OmegaConf.to_container(whole, resolve=True))
        for group, _, choice in (override.partition("=") for override in overrides):
            if (alone := choice_alone(group, choice)) is not None:  # as other tests compose it
                assert plain(alone) == plain(whole[group])


def plain(node):
    return OmegaConf.to_container(node, resolve=False)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (3, int, None),
        (3, float, None),
        (True, int, "a whole number"),
        ("1e-3", float, "a number"),
        (None, int | None, None),
        (1.5, Fraction, "at least 0 and at most 1"),
        (float("nan"), Fraction, "at least 0 and at most 1"),
        (1.0, Decay, "at least 0 and less than 1"),
        (0, PositiveInt, "at least 1"),
        (1e31, Positive, "greater than 0 and at most 1e+30"),
        ([1, "a"], list[int], "a list in which each is a whole number"),
    ],
)
def test_values_are_held_against_annotations(value, hint, wanted):
    assert mismatch(value, hint) == wanted


def test_an_unknown_argument_names_the_nearest():
    node = {"_target_": "experiments.objectives.losses.huber", "_partial_": True, "dleta": 1.0}
    with pytest.raises(UserError, match=r"loss\.dleta: no such argument; did you mean 'delta'"):
        check({"loss": node})


def test_numbers_take_their_place_and_everything_else_stays():
    config = {"optim": {"learning_rate": 0.1, "rule": "x", "list": [1.0, 2.0]}}
    placed = place(config, {"optim.learning_rate": 0.5, "optim.list.1": 7.0})
    assert placed == {"optim": {"learning_rate": 0.5, "rule": "x", "list": [1.0, 7.0]}}
    assert config["optim"]["learning_rate"] == 0.1


def test_build_calls_targets_innermost_first():
    node = {"_target_": "builtins.dict", "a": {"_target_": "builtins.list"}, "b": [1, 2]}
    assert build(node, c=3) == {"a": [], "b": [1, 2], "c": 3}
