"""Blocks that are computed again in the backward pass change the memory, and no number."""

import jax
import numpy as np
import pytest

from experiments.core.config import build, hyperparameters
from experiments.core.experiment import Experiment
from experiments.core.rng import root_key
from experiments.errors import UserError
from experiments.training.runtime import compiler_options
from support import close, composed

UNIT = "{dense: 32}, batch_norm, relu, {dropout: 0.3}"
LISTED = f"model.layers=[flatten, {UNIT}, {UNIT}, {UNIT}, {UNIT}, {{dense: classes}}]"
MODELS = {
    "densenet": ["model=densenet40_12", "model.blocks=[2,2,2]", "model.dropout=0.2"],
    "inception": ["model=googlenet_bn", "model.auxiliary_hidden=16"],
    "nin": ["model=nin", "model.small_widths=[[8,8],[8,8]]"],
    "resnet": ["model=resnet20", "model.widths=[4,4,4]", "model.stages=[1,1,8]"],
    "vgg": ["model=vgg11_bn", "model.widths=[4,4,4,4,4]", "model.small_hidden=[8]"],
}


def trained(*overrides, remat, size):
    """The state after a step, its metrics, and the bytes that the step takes."""
    config = composed("data=digits", *overrides, f"trainer.remat={remat}")
    data = build(config["data"])
    core = Experiment(config, data.spec, data.pipeline, 10, 10)
    numbers = {name: np.float32(value) for name, value in hyperparameters(config).items()}
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 255, (size, 8, 8, 1), np.uint8),
        "label": draw.integers(0, 10, size).astype(np.int32),
    }
    given = core.init(numbers, root_key(0)), batch, numbers, root_key(0)
    program = jax.jit(core.train_step).lower(*given).compile(compiler_options(0, remat=remat))
    state, metrics = program(*given)
    return state, metrics, program.memory_analysis().temp_size_in_bytes


def test_a_network_trains_alike_in_less_memory():
    """Dropout has its mask again, and statistics follow a batch once."""
    own = ("model=cnn", LISTED, "optim=sgd")
    (*usual, more), (*again, less) = (trained(*own, remat=r, size=1024) for r in (False, True))
    close(again, usual, rtol=1e-4, atol=1e-5)
    assert less < 0.7 * more


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_blocks_of_every_kind_give_the_gradients_again(model):
    own = (*MODELS[model], "optim=sgd")
    (*usual, _), (*again, _) = (trained(*own, remat=r, size=8) for r in (False, True))
    close(again, usual, rtol=1e-3, atol=1e-4)


def test_a_model_without_blocks_is_named():
    with pytest.raises(UserError, match="this model has no blocks"):
        trained("model.hidden=[4]", remat=True, size=8)
