"""Convolutions of the C library against XLA's own."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.ops import backend, library, windows
from experiments.ops.convolution import conv

needs_library = pytest.mark.skipif(
    not library.available(), reason="no C compiler, or a processor without AVX2 and NEON"
)


def random(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def xla_conv(x, kernel, pads):
    top, bottom, left, right = pads
    order = ("NHWC", "HWIO", "NHWC")
    padding = ((top, bottom), (left, right))
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=order)


def assert_close(actual, expected):
    """Equal to 3e-6 times the largest expected value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


WINDOWS = [
    # x, kernel, padding: top, bottom, left, right
    ((1, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)),
    ((37, 1, 1, 70), (1, 1, 70, 50), (0, 0, 0, 0)),  # a dense layer; no tile is full
    ((3, 12, 10, 1), (5, 5, 1, 6), (2, 2, 2, 2)),  # a whole window is one place
    ((5, 9, 30, 2), (3, 4, 2, 33), (0, 2, 3, 0)),
    ((3, 14, 11, 6), (5, 5, 6, 16), (0, 0, 0, 0)),  # all of a row's numbers have tiles together
    ((2, 13, 40, 16), (3, 3, 16, 16), (1, 1, 1, 1)),  # a row of output tiles, long rows
    ((9, 4, 4, 40), (3, 3, 40, 72), (1, 1, 1, 1)),  # images that share tiles
    ((5, 2, 3, 64), (2, 3, 64, 20), (1, 0, 2, 1)),
    ((40, 9, 12, 17), (3, 2, 17, 35), (2, 1, 0, 1)),  # slices of the batch
    ((1, 7, 7, 96), (3, 3, 96, 96), (2, 2, 2, 2)),
    ((2, 17, 3, 130), (1, 3, 130, 5), (0, 0, 1, 1)),
]


@pytest.mark.core
@needs_library
@pytest.mark.parametrize(("x_shape", "kernel_shape", "pads"), WINDOWS)
def test_outputs_and_gradients_equal_those_of_xla(x_shape, kernel_shape, pads):
    x, kernel = random(0, x_shape), random(1, kernel_shape)

    @jax.jit
    def both(x, kernel):
        results = []
        for f in (windows.multiply_windows, xla_conv):
            y, pull = jax.vjp(lambda x, k, f=f: f(x, k, pads), x, kernel)
            results.append((y, *pull(random(2, y.shape))))
        return results

    for ours, expected in zip(*both(x, kernel), strict=True):
        assert_close(ours, expected)


@needs_library
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "strides", "padding"),
    [
        ((3, 15, 17, 5), (3, 3, 5, 7), (2, 2), ((1, 1), (1, 1))),
        ((3, 12, 16, 5), (4, 4, 5, 7), (2, 2), ((1, 1), (1, 1))),
        ((2, 23, 20, 3), (7, 5, 3, 9), (3, 2), ((0, 4), (2, 1))),
        ((2, 9, 9, 5), (2, 3, 5, 7), (4, 5), ((0, 0), (1, 0))),  # places that no window sees
    ],
)
def test_strides(monkeypatch, x_shape, kernel_shape, strides, padding):
    monkeypatch.setattr(windows, "WORTH", 0)
    x, kernel = random(0, x_shape), random(1, kernel_shape)
    program = jax.make_jaxpr(lambda *a: conv(*a, strides=strides, padding=padding))(x, kernel)
    assert "multiply_windows" in str(program)

    def theirs(x, kernel):
        order = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=order)

    @jax.jit
    def both(x, kernel):
        results = []
        for f in (lambda *a: conv(*a, strides=strides, padding=padding), theirs):
            y, pull = jax.vjp(f, x, kernel)

            def penalty(*factors, f=f):  # of the gradients' size: it goes through all of them
                return sum(
                    jnp.sum(d**2)
                    for d in jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1))(*factors)
                )

            results.append((y, *pull(random(2, y.shape)), *jax.grad(penalty, (0, 1))(x, kernel)))
        return results

    for ours, expected in zip(*both(x, kernel), strict=True):
        assert_close(ours, expected)


@needs_library
def test_sums_are_as_exact_as_those_of_xla():
    x, kernel = random(0, (4, 12, 12, 48)), random(1, (5, 5, 48, 24))
    padded = np.pad(np.asarray(x, np.float64), [(0, 0), (2, 2), (2, 2), (0, 0)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    exact = np.tensordot(seen, np.asarray(kernel, np.float64), [(4, 5, 3), (0, 1, 2)])
    ours = windows.multiply_windows(x, kernel, (2, 2, 2, 2))
    assert np.abs(ours - exact).max() < 2e-6 * np.abs(exact).max()
    scaled = windows.multiply_windows(x * 1e20, kernel * 1e-30, (2, 2, 2, 2))
    np.testing.assert_allclose(scaled, ours * 1e-10, rtol=0, atol=3e-16 * np.abs(exact).max())


@needs_library
def test_the_same_product_has_the_same_bits():
    x, dy = random(0, (64, 12, 12, 16)), random(1, (64, 12, 12, 32))
    kernel = random(2, (3, 3, 16, 32))

    @jax.jit
    def gradients(x, kernel, dy):
        y, pull = jax.vjp(lambda x, k: windows.multiply_windows(x, k, (1, 1, 1, 1)), x, kernel)
        return y, *pull(dy)

    first = gradients(x, kernel, dy)
    for _ in range(20):
        for a, b in zip(first, gradients(x, kernel, dy), strict=True):
            np.testing.assert_array_equal(a, b)


@needs_library
class TestTransformations:
    pads = (1, 1, 1, 1)
    x = random(0, (3, 4, 6, 6, 8))
    kernel = random(1, (3, 3, 3, 8, 20))

    def ours(self, x, kernel):
        return jnp.sum(windows.multiply_windows(x, kernel, self.pads) ** 2)

    def over(self, axes):
        return zip((self.x, self.kernel), axes, strict=True)

    def theirs(self, x, kernel):
        return jnp.sum(xla_conv(x, kernel, self.pads) ** 2)

    @pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
    def test_each_of_many_trials_has_the_bits_of_the_same_trial_alone(self, axes):
        x, kernel = (
            a[0] if i is None else a for a, i in zip((self.x, self.kernel), axes, strict=False)
        )
        gradient = jax.grad(self.ours, (0, 1))
        stacked = jax.jit(jax.vmap(gradient, axes))(x, kernel)
        for trial in range(3):
            own = (a if i is None else a[trial] for a, i in zip((x, kernel), axes, strict=False))
            for together, alone in zip(stacked, jax.jit(gradient)(*own), strict=True):
                np.testing.assert_array_equal(together[trial], alone)

    @pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
    def test_gradients_through_many_trials(self, axes):
        x, kernel = (
            a[0] if i is None else a for a, i in zip((self.x, self.kernel), axes, strict=False)
        )
        results = [
            jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jax.vmap(f, axes)(*a)), (0, 1)))(x, kernel)
            for f in (self.ours, self.theirs)
        ]
        for actual, expected in zip(*results, strict=True):
            assert_close(actual, expected)

    def test_lanes_of_lanes(self):
        def table(f):
            return jax.jit(jax.vmap(jax.vmap(jax.grad(f, 1), (None, 0)), (0, None)))

        assert_close(table(self.ours)(self.x, self.kernel), table(self.theirs)(self.x, self.kernel))

    def test_gradient_penalty_and_forward_mode(self):
        x, kernel = self.x[0], self.kernel[0]

        def penalty(f):
            slope = jax.grad(lambda x, k: jnp.tanh(f(x, k) / 1e4))
            return jax.jit(jax.grad(lambda k: jnp.sum(slope(x, k) ** 2)))(kernel)

        def tangent(f):
            return jax.jit(lambda *a: jax.jvp(jax.grad(f), a, a)[1])(x, kernel)

        assert_close(penalty(self.ours), penalty(self.theirs))
        assert_close(tangent(self.ours), tangent(self.theirs))

    def test_outside_of_a_program_and_inside_a_loop(self):
        x, kernel = self.x[0], self.kernel[0]
        assert_close(jax.grad(self.ours, 1)(x, kernel), jax.grad(self.theirs, 1)(x, kernel))

        def descend(f):
            step = lambda _, k: k - 1e-4 * jax.grad(jax.checkpoint(f), 1)(x, k)  # noqa: E731
            return jax.jit(lambda n: lax.fori_loop(0, n, step, kernel))(3)

        assert_close(descend(self.ours), descend(self.theirs))


@needs_library
def test_convolutions_go_to_the_library_where_it_is_faster():
    def used(x, kernel):
        program = jax.make_jaxpr(lambda *a: conv(*a))(random(0, x), random(1, kernel))
        return "multiply_windows" in str(program)

    assert used((64, 16, 16, 16), (3, 3, 16, 16))
    assert not used((1, 4, 4, 16), (3, 3, 16, 16))  # too little to compute
    assert not used((64, 16, 16, 16), (1, 1, 16, 16))  # a matrix product
    assert not used((16, 8, 8, 256), (3, 3, 256, 256))  # Winograd's algorithm
    with backend.xla_only():
        assert not used((64, 16, 16, 16), (3, 3, 16, 16))


LOADS = """
import logging
logging.basicConfig(format="%(message)s", level=logging.INFO)
from experiments.ops import library
print(library.available())
"""


@needs_library
@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("/no/such/cc", "/no/such/cc cannot compile them"),
        ("{folder}/fails", "fails cannot compile them: error: no room"),
        (None, ""),
    ],
)
def test_a_library_that_cannot_be_made_is_done_without(tmp_path, compiler, said):
    failing = tmp_path / "fails"
    failing.write_text("#!/bin/sh\necho error: no room >&2\nexit 1\n")
    failing.chmod(0o755)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    environment.pop("CC", None)
    if compiler:
        environment["CC"] = compiler.format(folder=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOADS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(compiler is None), done.stderr
    lines = [line for line in done.stderr.splitlines() if "left to XLA" in line]
    assert len(lines) == (compiler is not None)
    assert all(said in line for line in lines)
    made = list((tmp_path / "cache").rglob("*.so"))
    assert len(made) == (compiler is None)


needs_tiles = pytest.mark.skipif(not library.has_tiles(), reason="no matrix units (AMX) here")


@needs_tiles
@pytest.mark.parametrize(("x_shape", "kernel_shape", "pads"), WINDOWS)
def test_three_products_of_bfloat16_on_tiles_are_almost_exact(x_shape, kernel_shape, pads):
    x, kernel = random(0, x_shape), random(1, kernel_shape)
    results = []
    for f in (partial(windows.multiply_windows, products=3), xla_conv):
        y, pull = jax.vjp(lambda x, k, f=f: f(x, k, pads), x, kernel)
        results.append((y, *pull(random(2, y.shape))))
    for ours, expected in zip(*results, strict=True):
        error = np.abs(ours - expected).max() / np.abs(expected).max()
        assert error < 2e-5


@needs_tiles
def test_tiles_are_used_by_those_who_ask_for_less_than_float32():
    x, kernel = random(0, (8, 8, 8, 24)), random(1, (3, 3, 24, 40))

    def both(x, kernel):
        y, pull = jax.vjp(conv, x, kernel)
        return (y, *pull(jnp.ones_like(y)))

    exact = both(x, kernel)
    with jax.default_matmul_precision("high"):
        high = both(x, kernel)
    assert all((a != b).any() for a, b in zip(exact, high, strict=True))
    near = [np.asarray(a, jnp.bfloat16) for a in (x, kernel)]
    one = both(*near)
    three = windows.multiply_windows(
        *(a.astype(jnp.float32) for a in near), (1, 1, 1, 1), products=3
    )
    assert one[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(one[0], three.astype(jnp.bfloat16))


@needs_tiles
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_each_of_many_trials_on_tiles_has_the_bits_of_the_same_trial_alone(axes):
    x, kernel = random(0, (3, 4, 6, 6, 8)), random(1, (3, 3, 3, 8, 20))
    x, kernel = (a[0] if i is None else a for a, i in zip((x, kernel), axes, strict=True))

    def loss(x, kernel):
        return jnp.sum(windows.multiply_windows(x, kernel, (1, 1, 1, 1), products=3) ** 2)

    stacked = jax.vmap(jax.grad(loss, (0, 1)), axes)(x, kernel)
    for trial in range(3):
        own = (a if i is None else a[trial] for a, i in zip((x, kernel), axes, strict=True))
        for together, alone in zip(stacked, jax.grad(loss, (0, 1))(*own), strict=True):
            np.testing.assert_array_equal(together[trial], alone)


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "tests"),
    [
        ("-DLANES_OF=4", "outputs_and_gradients or strides"),  # as NEON has
        ("-DLANES_OF=16", "outputs_and_gradients or strides"),  # as AVX-512 has
        (
            "-include {folder}/tiles_in_c.h",
            "outputs_and_gradients or strides or on_tiles or tiles_are",
        ),
    ],
)
def test_other_processors_give_the_same(tmp_path, flags, tests):
    folder = os.path.dirname(__file__)
    compiler = f"{os.environ.get('CC', 'cc')} {flags.format(folder=folder)}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CC": compiler}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        f"({tests}) and not processors",
    ]
    command += [os.path.join(folder, name) for name in ("test_windows.py", "test_lstm.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout
