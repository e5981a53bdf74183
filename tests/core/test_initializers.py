"""Weights that one program draws for many shapes are those of each shape by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core.config import build
from experiments.core.initializers import pooled
from experiments.core.new_weights import NewWeights, directly
from support import choices, composed

SHAPES = ((3, 3, 5, 7), (1, 1, 64, 16), (10, 3))


@pytest.fixture(scope="module")
def drawn():
    """Draws weights of a shape as an experiment with this initializer would."""

    def draw(config, key, shape):
        keys = key[None], np.uint32(0)
        return NewWeights(config).draw(directly, keys, {}, shape, jnp.dtype("float32"))

    return draw


@pytest.mark.parametrize("name", choices("init"))
def test_pooled_draws_are_those_of_the_shape(drawn, name):
    config, key = composed(f"init={name}")["init"], jax.random.key(3)
    assert (pooled(config, SHAPES[0]) is None) == (name == "orthogonal")
    for shape in SHAPES:
        wanted = jax.jit(build(config), static_argnums=(1, 2))(key, shape, "float32")
        np.testing.assert_allclose(drawn(config, key, shape), wanted, rtol=1e-5, atol=2e-7)
