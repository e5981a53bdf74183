"""Every file in conf/data, composed by Hydra."""

import dataclasses
import re
import textwrap
import typing

import numpy as np
import pytest

from experiments.core.config import build, locate
from experiments.data import dataset
from experiments.data.images import TfdsImages
from experiments.data.pipeline import Augment
from experiments.types import PositiveInt
from support import ROOT, choices, composed

NEEDED = {"tfds": ["data.name=toy"], "text": ["data.path=a.txt"], "timeseries": ["data.path=a.csv"]}


@pytest.mark.parametrize("name", choices("data"))
def test_shows_every_key_and_builds(name):
    config = composed(f"data={name}", *NEEDED.get(name, []))["data"]
    target = locate(config["_target_"])
    assert set(config) == {field.name for field in dataclasses.fields(target)} | {"_target_"}
    hints = typing.get_type_hints(target.__init__)  # by which `check` compares the values
    assert set(config) - {"_target_"} == set(hints) - {"return"}
    data = build(config)
    assert data.batch_size > 0
    if not issubclass(target, TfdsImages):
        return
    assert set(config["augment"]) == {f.name for f in dataclasses.fields(Augment)} | {"_target_"}
    assert data.augment == Augment()
    if name != "tfds":
        assert data.name == name.removesuffix("_rows")
        assert len(data.pipeline.mean) == len(data.pipeline.std) == data.input_shape[-1]


def test_the_data_set_of_the_documentation_is_one():
    page = (ROOT / "docs/adding_a_data_set.md").read_text()
    (code,) = re.findall(r"^    # mine.*?(?=^    # conf)", page, re.M | re.S)
    names = {**vars(dataset), "Literal": typing.Literal, "PositiveInt": PositiveInt, "np": np}
    exec(textwrap.dedent(code), names)
    dice = names["Dice"](rolls=50, batch_size=10, eval_batch_size=10)
    splits = dice.load()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [50, 50, 50]
    stored = {n: (a.shape[1:], a.dtype) for n, a in splits.train.arrays.items()}
    assert stored == dict(dice.spec.stored)
    assert splits.train.arrays["label"].max() < dice.spec.num_classes == len(splits.class_names)
