"""The CPU lowering against the stock convolution: values, gradients, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.ops.convolution import conv


def stock(x, kernel, strides=1, padding="SAME", dilation=1, groups=1):
    dims = x.ndim - 2
    spatial = "DHW"[-dims:]
    each = lambda v: (v,) * dims if isinstance(v, int) else v  # noqa: E731
    if not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else p for p in each(padding)]
    return lax.conv_general_dilated(
        x,
        kernel,
        each(strides),
        padding,
        rhs_dilation=each(dilation),
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )


def random(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def assert_close(actual, expected, tolerance=1e-5):
    """Equal to `tolerance` times the largest expected value."""
    actual, expected = (np.asarray(a, np.float32) for a in (actual, expected))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


CASES = [
    # x, kernel, options
    ((2, 8, 8, 3), (3, 3, 3, 4), {}),
    ((2, 9, 7, 3), (3, 2, 3, 4), {"strides": 2}),
    ((2, 9, 8, 3), (5, 3, 3, 4), {"padding": "VALID", "strides": (2, 1)}),
    ((2, 7, 7, 3), (3, 3, 3, 4), {"padding": 2, "dilation": 2}),
    ((2, 7, 6, 3), (4, 2, 3, 4), {"padding": ((2, 1), (0, 3)), "strides": 3}),
    ((2, 8, 8, 6), (3, 3, 2, 9), {"groups": 3, "strides": 2}),
    ((2, 8, 8, 5), (3, 3, 1, 10), {"groups": 5, "padding": 1}),
    ((2, 8, 8, 6), (1, 1, 6, 4), {"strides": 2}),
    ((3, 1, 1, 8), (3, 3, 8, 8), {}),
    ((3, 2, 2, 8), (3, 3, 8, 8), {}),
    ((2, 19, 3), (5, 3, 4), {"strides": 2, "dilation": 2}),
    ((2, 6, 5, 4, 2), (3, 2, 3, 2, 4), {"strides": (2, 1, 1)}),
]


@pytest.mark.parametrize(("x_shape", "kernel_shape", "options"), CASES)
def test_values_and_gradients_equal_the_stock_convolution(x_shape, kernel_shape, options):
    x, kernel = random(0, x_shape), random(1, kernel_shape)

    @jax.jit
    def both(x, kernel):
        results = []
        for f in (conv, stock):
            y, vjp = jax.vjp(lambda x, k, f=f: f(x, k, **options), x, kernel)
            results.append((y, *vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
        return results

    for ours, expected in zip(*both(x, kernel), strict=True):
        assert_close(ours, expected)
