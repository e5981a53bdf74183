"""Every file in conf/data, composed by Hydra."""

import dataclasses
import typing

import pytest

from experiments.core.config import build, locate
from experiments.data.images import TfdsImages
from experiments.data.pipeline import Augment
from support import choices, composed

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
