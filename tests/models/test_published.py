"""Weights of this project under torchvision's names: in its layout, and back without a change."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from experiments.core.config import build
from experiments.core.params import merged, variables
from experiments.core.transfer import named
from experiments.models.torchvision import published, read_published
from support import composed

# what torchvision's models have in their `state_dict`, but for `num_batches_tracked`
FULL = {
    "resnet18": (102, {"conv1.weight": (64, 3, 7, 7), "layer4.1.bn2.running_var": (512,)}),
    "densenet121": (
        606,
        {
            "features.denseblock3.denselayer24.norm1.weight": (992,),
            "features.denseblock3.denselayer24.conv1.weight": (128, 992, 1, 1),
            "features.denseblock1.denselayer1.conv2.weight": (32, 128, 3, 3),
            "features.transition3.conv.weight": (512, 1024, 1, 1),
        },
    ),
    "alexnet_single": (
        16,
        {"features.3.weight": (192, 64, 5, 5), "classifier.1.weight": (4096, 9216)},
    ),
}
SIXTH = [4, 4, 8, 2, 4, 4]
SMALL = {
    "vgg11_bn": {"stages": [1, 2], "widths": [4, 6], "hidden": [16, 12]},
    "resnet18": {"stages": [2, 8], "widths": [4, 6]},
    "resnet50": {"stages": [2, 2], "widths": [4, 6]},
    "densenet121": {"blocks": [2, 4], "growth_rate": 4, "initial": 8},
    "densenet40_12": {"blocks": [3, 2], "growth_rate": 4},
    "googlenet_bn": {"stem": [4, 4, 8], "modules": [[SIXTH], [SIXTH, SIXTH], [SIXTH]]},
}


def shapes(name, sizes, input_shape):
    config = composed(f"model={name}")["model"] | sizes

    def make():
        init = {"kernel_init": jax.nn.initializers.zeros, "rngs": nnx.Rngs(0)}
        model = build(config, input_shape=input_shape, num_classes=1000, **init)
        return merged(*variables(model))

    return config, named(jax.eval_shape(make))


@pytest.mark.parametrize("name", FULL)
def test_names_and_shapes_are_torchvisions(name):
    count, some = FULL[name]
    config, wanted = shapes(name, {}, (224, 224, 3))
    zeros = {n: np.broadcast_to(np.float32(0), one.shape) for n, one in wanted.items()}
    found = published(zeros, config)
    assert len(found) == count
    assert {n: found[n].shape for n in some} == some


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_back_as_they_were(name, tmp_path):
    config, wanted = shapes(name, SMALL[name], (32, 32, 3))
    rng = np.random.default_rng(0)
    weights = {n: rng.random(one.shape, np.float32) for n, one in wanted.items()}
    save_file(published(weights, config), tmp_path / "x.safetensors")
    found = read_published(tmp_path / "x.safetensors", config)
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)
