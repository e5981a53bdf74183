"""What configs are composed of."""

from experiments.search.configs import Configs
from support import ROOT


def test_ones_own_defaults_are_before_the_shipped_ones_and_behind_a_recipe(tmp_path):
    (tmp_path / "local").mkdir()
    own = "# @package _global_\ndefaults: [{override /optim: sgd}]\nseed: 3\ntrainer: {epochs: 7}\n"
    (tmp_path / "local" / "default.yaml").write_text(own)
    composed = Configs(ROOT / "conf", ["seed=5"], str(tmp_path)).compose()
    assert (
        composed["optim"]["rule"]
        == Configs(ROOT / "conf", ["optim=sgd"]).compose()["optim"]["rule"]
    )
    assert (composed["seed"], composed["trainer"]["epochs"]) == (5, 7)
    recipe = Configs(ROOT / "conf", ["experiment=lenet5_mnist"], str(tmp_path)).compose()
    assert recipe["seed"] == 3
    assert recipe["trainer"]["epochs"] != 7
