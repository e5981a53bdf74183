"""Pooling against `lax.reduce_window`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.ops.pooling import avg_pool, global_avg_pool, max_pool


@pytest.mark.parametrize("window", [2, 3, (2, 3)])
@pytest.mark.parametrize("strides", [None, 2])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_max_pool_equals_reduce_window_with_its_gradient(window, strides, padding):
    # Few distinct values, so that windows have ties.
    x = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (2, 7, 8, 3)), jnp.float32)
    size = (1, *((window, window) if isinstance(window, int) else window), 1)
    step = size if strides is None else (1, strides, strides, 1)

    def xla_pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, size, step, padding)

    def ours(x):
        return max_pool(x, window, strides=strides, padding=padding)

    def value_and_gradient(pool):
        y, vjp = jax.vjp(pool, x)
        return y, vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

    (y, dx), (y_xla, dx_xla) = jax.jit(lambda: [value_and_gradient(f) for f in (ours, xla_pool)])()
    np.testing.assert_array_equal(y, y_xla)
    np.testing.assert_allclose(dx, dx_xla, atol=1e-6)


def test_avg_pool_does_not_count_padding():
    y = avg_pool(jnp.ones((1, 4, 4, 1)), 3, strides=2, padding=1)
    np.testing.assert_allclose(y, 1, rtol=1e-6)


def test_global_avg_pool_is_the_mean_over_space():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)
    np.testing.assert_allclose(global_avg_pool(x), x.mean((1, 2)), rtol=1e-5)
