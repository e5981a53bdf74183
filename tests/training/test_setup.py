"""A static configuration: what is said of it before it is compiled."""

import pytest

from experiments.machine import CONFIG
from experiments.search.plan import plan_of_arguments
from experiments.training.setup import Setups
from support import composed


@pytest.mark.parametrize(
    ("size", "layer", "warned"),
    [(1, "batch_norm", True), (2, "batch_norm", False), (1, "tanh", False)],
)
def test_batch_normalisation_of_one_example_is_warned_of(data_home, caplog, size, layer, warned):
    layers = f"model.layers=[flatten,{{dense: 4}},{layer},{{dense: classes}}]"
    Setups().of(composed(*data_home, "model=cnn", layers, f"data.batch_size={size}"))
    assert ("data.batch_size=1: batch normalisation" in caplog.text) == warned


def test_a_least_improvement_that_nothing_waits_for_is_said(data_home, caplog):
    tiny = [*data_home, "model.hidden=[4]", "trainer.min_delta=0.1"]
    for patience, said in (("null", True), ("3", False)):
        caplog.clear()
        Setups().of(composed(*tiny, f"trainer.patience={patience}"))
        assert ("changes nothing without trainer.patience" in caplog.text) == said


def test_a_gradient_that_is_an_estimate_is_said_once(data_home, caplog):
    caplog.set_level("INFO")
    for own in (["model=perceptron"], ["model=cnn", "model.layers=[flatten,step,{dense:classes}]"]):
        Setups().of(composed(*data_home, *own, "loss=mse"))
        assert caplog.text.count("`step` is a straight-through estimate") == 1
        caplog.clear()
    side_by_side = ["model=perceptron", "loss=mse", "seed=range(3)", *data_home]
    plan_of_arguments(side_by_side, {}, CONFIG)  # which is the launcher's
    assert caplog.text.count("`step` is a straight-through estimate") == 1
    caplog.clear()
    Setups().of(composed(*data_home, "model.hidden=[4]"))
    assert "straight-through" not in caplog.text


@pytest.mark.parametrize(
    ("tta", "flip", "warned"),
    [("flip", False, 1), ("ten_crop", False, 1), ("flip", True, 0), ("five_crop", False, 0)],
)
def test_mirror_images_of_data_that_were_not_mirrored_are_warned_of(caplog, tta, flip, warned):
    crop = ["data.augment.crop_padding=1"]
    Setups().of(composed(f"eval.tta={tta}", f"data.augment.flip={flip}", *crop))
    assert caplog.text.count("averages over mirror images") == warned


def test_a_number_that_is_an_input_is_told_from_one_that_is_switched_off(data_home):
    setups = Setups()
    averaged, not_averaged = (
        composed(*data_home, "model.hidden=[8]", f"optim.ema_decay={decay}")
        for decay in ("0.9", "null")
    )
    assert "optim.ema_decay" in setups.of(averaged).inputs_of(averaged)
    assert "optim.ema_decay" not in setups.of(not_averaged).inputs_of(not_averaged)
    assert setups.of(averaged) is setups.of(averaged | {"seed": 1}) is not setups.of(not_averaged)
