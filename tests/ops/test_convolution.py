"""The CPU lowering against XLA's own convolution: values, gradients, transformations."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.ops.convolution import conv


def xla_conv(x, kernel, strides=1, padding="SAME", dilation=1, groups=1):
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
    """Normal; a kernel (seed > 0) scaled so that outputs are of order one."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(x / np.sqrt(x[..., 0].size if seed else 1), dtype)


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
    # several outputs share a patch: a whole row of them, with a stride, with a remainder
    ((2, 7, 12, 1), (5, 5, 1, 6), {"padding": 2}),
    ((2, 6, 13, 2), (3, 2, 2, 5), {"strides": (1, 3), "padding": "VALID"}),
    ((2, 6, 9, 2), (1, 1, 2, 5), {"strides": 2}),
    # taps that see only padding
    ((2, 1, 3, 8), (3, 5, 8, 8), {"padding": (1, 4), "dilation": (1, 2)}),
    ((2, 1, 1, 8), (3, 3, 8, 8), {"strides": 2, "padding": 3}),
    # Winograd's tiles of 4 and of 2
    ((2, 9, 7, 8), (3, 3, 8, 16), {}),
    ((1, 5, 12, 9), (3, 3, 9, 8), {"padding": ((0, 2), (3, 1))}),
    ((2, 4, 5, 8), (3, 3, 8, 8), {}),
    ((2, 19, 3), (5, 3, 4), {"strides": 2, "dilation": 2}),
    ((2, 6, 5, 4, 2), (3, 2, 3, 2, 4), {"strides": (2, 1, 1)}),
]


@pytest.mark.parametrize(("x_shape", "kernel_shape", "options"), CASES)
def test_values_and_gradients_equal_those_of_xla(x_shape, kernel_shape, options):
    x, kernel = random(0, x_shape), random(1, kernel_shape)

    @jax.jit
    def both(x, kernel):
        results = []
        for f in (conv, xla_conv):
            y, vjp = jax.vjp(lambda x, k, f=f: f(x, k, **options), x, kernel)
            results.append((y, *vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))))
        return results

    for ours, expected in zip(*both(x, kernel), strict=True):
        assert_close(ours, expected)


WINOGRAD = ((2, 6, 6, 8), (3, 3, 8, 8))
PATCHES = ((2, 6, 6, 3), (3, 3, 3, 4))


@pytest.mark.parametrize("shapes", [WINOGRAD, PATCHES], ids=["winograd", "patches"])
class TestTransformations:
    def test_vmap_over_input_and_kernel_equals_each_trial(self, shapes):
        x, kernel = (random(i, (3, *shape)) for i, shape in enumerate(shapes))
        stacked = jax.jit(jax.vmap(jax.grad(loss(conv), (0, 1))))(x, kernel)
        gradient = jax.jit(jax.grad(loss(xla_conv), (0, 1)))
        for trial in range(3):
            expected = gradient(x[trial], kernel[trial])
            for ours, theirs in zip(stacked, expected, strict=True):
                assert_close(ours[trial], theirs)

    def test_gradient_penalty_and_forward_mode(self, shapes):
        x, kernel = (random(i, shape) for i, shape in enumerate(shapes))

        def penalty(f):
            slope = jax.grad(lambda x, k: jnp.sum(jnp.tanh(f(x, k))))
            return jax.grad(lambda k: jnp.sum(slope(x, k) ** 2))

        assert_close(jax.jit(penalty(conv))(kernel), penalty(xla_conv)(kernel))
        tangent = jax.jit(lambda x, k: jax.jvp(jax.grad(loss(conv)), (x, k), (x, k))[1])
        assert_close(
            tangent(x, kernel), jax.jvp(jax.grad(loss(xla_conv)), (x, kernel), (x, kernel))[1]
        )

    def test_inside_a_loop_of_dynamic_length_and_under_checkpoint(self, shapes):
        x, kernel = (random(i, shape) for i, shape in enumerate(shapes))

        def descend(f, steps):
            step = lambda _, k: k - 1e-4 * jax.grad(jax.checkpoint(loss(f)), 1)(x, k)  # noqa: E731
            return lax.fori_loop(0, steps, step, kernel)

        ours = jax.jit(lambda n: descend(conv, n))(3)
        assert_close(ours, jax.jit(lambda n: descend(xla_conv, n))(3))

    def test_bfloat16_rounds_only_the_result(self, shapes):
        x, kernel = (random(i, shape, jnp.bfloat16) for i, shape in enumerate(shapes))
        y = jax.jit(conv)(x, kernel)
        assert y.dtype == jnp.bfloat16
        assert_close(y, xla_conv(x.astype(jnp.float32), kernel.astype(jnp.float32)), 2**-8)


def loss(f):
    return lambda x, kernel: jnp.sum(f(x, kernel) ** 2)


@pytest.mark.slow
def test_a_batch_sharded_over_devices_gives_the_same_gradients():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from experiments.ops.convolution import conv
from experiments.ops.pooling import max_pool
x = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
kernels = [jax.random.normal(jax.random.key(i), (3, 3, c, 8)) / 9 for i, c in ((1, 3), (2, 8))]
def loss(kernels, x):
    for kernel in kernels:
        x = max_pool(jax.nn.relu(conv(x, kernel)), 2) if kernel.shape[2] == 8 else conv(x, kernel)
    return jnp.mean(x ** 2)
mesh = Mesh(jax.devices(), "batch")
sharded = jax.device_put(x, NamedSharding(mesh, P("batch")))
replicated = jax.device_put(kernels, NamedSharding(mesh, P()))
assert len(jax.devices()) == 8
step = jax.jit(jax.grad(loss)).lower(replicated, sharded).compile()
for a, b in zip(step(replicated, sharded), jax.jit(jax.grad(loss))(kernels, x)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
text = step.as_text()
assert "all-gather" not in text and "all-to-all" not in text, "the batch must stay where it is"
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **flags}, check=True)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 8, 8, 3), (3, 3, 4, 4)), {}, "do not fit"),
        (((2, 8, 8, 3), (3, 3, 4)), {}, "same rank"),
        (((2, 8, 8, 3), (3, 3, 3, 4)), {"padding": "same-ish"}, "SAME"),
        (((2, 2, 2, 3), (3, 3, 3, 4)), {"padding": "VALID"}, "does not fit"),
        (((2, 8, 8, 3), (3, 3, 3, 4)), {"strides": (1, 2, 3)}, "strides"),
    ],
)
def test_shapes_and_options_that_do_not_fit_are_refused(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        conv(*(jnp.zeros(s) for s in shapes), **options)
