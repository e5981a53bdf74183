"""Initial weights are drawn as the initializers of JAX's of the same name draw them."""

import jax
import numpy as np
import pytest

from experiments.core.config import build
from support import choices, composed

SHAPES = ((3, 3, 5, 70), (1, 1, 640, 16), (100, 30))


@pytest.fixture(params=choices("init"))
def pair(request):
    """The initializer of a config and that of JAX's with its name and arguments."""
    config = composed(f"init={request.param}")["init"]
    name = config["_target_"].rpartition(".")[2]
    if name == "uniform":  # JAX's starts at 0
        theirs = lambda key, shape: jax.random.uniform(key, shape, "float32", -0.05, 0.05)  # noqa: E731
        return build(config), theirs
    return build(config), build(config | {"_target_": f"jax.nn.initializers.{name}"})


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_have_the_distribution_of_jaxs(pair, shape):
    ours, theirs = (np.asarray(init(jax.random.key(3), shape)) for init in pair)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float32
    size = ours.size
    spread = theirs.std() + 1e-9
    assert abs(ours.mean() - theirs.mean()) < 6 * spread / size**0.5
    assert ours.std() == pytest.approx(theirs.std(), rel=6 / size**0.5)
    for quantile in (0.05, 0.25, 0.75, 0.95):
        np.testing.assert_allclose(
            np.quantile(ours, quantile), np.quantile(theirs, quantile), atol=8 * spread / size**0.5
        )
    assert np.abs(ours).max() <= np.abs(theirs).max() * 1.5 + 1e-9


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (3, 3, 2, 8)])
def test_orthogonal_matrices_are_orthogonal(shape):
    init = build(composed("init=orthogonal", "init.scale=2.0")["init"])
    matrix = init(jax.random.key(0), shape).reshape(-1, shape[-1]) / 2
    product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-6)


def test_each_weight_has_a_key_of_its_own_that_follows_from_the_seed(pair):
    ours, _ = pair
    same = [ours(jax.random.key(seed), (40, 30)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(same[0], same[1])
    if np.ptp(same[0]) > 0:
        assert np.abs(same[0] - same[2]).max() > 0
