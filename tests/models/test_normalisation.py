"""Normalisations against their formulas, channel by channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.layers import GroupNorm, local_response_norm


@pytest.mark.parametrize("size", [1, 3, 4, 5, 9])
def test_each_channel_is_divided_by_its_neighbours(size):
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 3, 6)))
    alpha, beta, k = 0.5, 0.75, 2.0
    expected = np.empty_like(x)
    for c in range(6):
        low, high = max(0, c - (size - 1) // 2), min(5, c + size // 2)
        total = (x[..., low : high + 1] ** 2).sum(-1)
        expected[..., c] = x[..., c] / (k + alpha * total) ** beta
    found = jax.jit(lambda a: local_response_norm(x, size, alpha=a, beta=beta, k=k))(alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_it_keeps_the_type_of_its_input():
    assert local_response_norm(jnp.ones((1, 8), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(("groups", "shape"), [(1, (3, 6)), (1, (3, 4, 5, 6)), (3, (3, 4, 5, 6))])
def test_each_group_of_channels_of_an_example_has_mean_0_and_variance_1(groups, shape):
    x = np.asarray(3 + 2 * jax.random.normal(jax.random.key(0), shape))
    norm = GroupNorm(6, groups)
    norm.scale[...], norm.bias[...] = jnp.full(6, 2.0), jnp.arange(6.0)
    plain = (norm(x) - np.arange(6)) / 2
    size = 6 // groups
    for example, channels in np.ndindex(shape[0], groups):
        part = np.s_[example, ..., channels * size : (channels + 1) * size]
        expected = (x[part] - x[part].mean()) / np.sqrt(x[part].var() + 1e-5)
        np.testing.assert_allclose(plain[part], expected, atol=1e-5)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
