"""Every file in conf/data, composed by Hydra."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.data.augment import Augment
from experiments.data.tfds_images import TfdsImages

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "data").glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_shows_every_key_and_builds(name):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"+data={name}"] + ["data.name=toy"] * (name == "tfds")
        config = compose(overrides=overrides).data
    keys = {field.name for field in dataclasses.fields(TfdsImages)}
    assert set(config) == keys | {"_target_"}
    assert set(config.augment) == {f.name for f in dataclasses.fields(Augment)} | {"_target_"}
    data = instantiate(OmegaConf.to_container(config), _convert_="all")
    assert data.augment == Augment()
    if name != "tfds":
        assert data.name == name
        assert len(data.pipeline.mean) == len(data.pipeline.std) == data.spec.input_shape[2]
