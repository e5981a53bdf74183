"""A static configuration: what is said of it before it is compiled."""

import pytest

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
