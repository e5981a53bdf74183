"""An LSTM in one operation of the C library against the same steps one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.recurrent_layers import CELLS
from experiments.ops import backend, library, lstm
from experiments.ops.recurrence import recur

pytestmark = pytest.mark.skipif(
    not library.available(), reason="no C compiler, or a processor without AVX2 and NEON"
)

SIZES = [  # steps, sequences, inputs, units
    (1, 1, 1, 1),
    (5, 64, 28, 128),
    (6, 37, 70, 50),  # no block is full
    (3, 130, 33, 17),  # more sequences than a thread takes at a time
]


def factors(steps, batch, inputs, hidden, seed=0):
    """Inputs, kernels, bias and the state before the first step."""
    rng = np.random.default_rng(seed)
    shapes = [(steps, batch, inputs), (inputs, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    shapes += [(batch, hidden)] * 2
    scales = [1, inputs**-0.5, hidden**-0.5, 1, 1, 1]
    return [
        jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for scale, shape in zip(scales, shapes, strict=True)
    ]


def by_library(reverse, keep, x, kernel, recurrent, bias, h, c):
    return lstm.lstm(reverse, x, kernel, recurrent, bias, (h, c), keep)


def step_by_step(reverse, keep, x, kernel, recurrent, bias, h, c):
    update = CELLS["lstm"].update
    return recur(update, 0, reverse, x @ kernel, bias, recurrent, {}, (h, c), keep)


def results_and_gradients(run, given):
    """Outputs and last state, and all gradients of a weighted sum of them."""
    rng = np.random.default_rng(1)

    @jax.jit
    def both(*given):
        results, pull = jax.vjp(run, *given)
        leaves, form = jax.tree.flatten(results)
        weights = [jnp.asarray(rng.standard_normal(a.shape), jnp.float32) for a in leaves]
        return leaves, pull(jax.tree.unflatten(form, weights))

    return jax.tree.leaves(both(*given))


@pytest.mark.core
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_equal_those_of_single_steps(size, stays, reverse):
    given = factors(*size)
    moves = np.random.default_rng(2).random((*size[:2], 1)) < 0.7
    keep = jnp.asarray(moves) if stays else None
    actual, expected = (
        results_and_gradients(functools.partial(run, reverse, keep), given)
        for run in (by_library, step_by_step)
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * np.abs(e).max() + 1e-7)


def test_each_of_many_trials_has_the_bits_of_the_same_trial_alone():
    trials = [factors(4, 40, 9, 20, seed) for seed in range(3)]
    stacked = [jnp.stack(arrays) for arrays in zip(*trials, strict=True)]
    stacked[0] = trials[0][0]  # all see the same inputs
    run = functools.partial(results_and_gradients, functools.partial(by_library, False, None))
    axes = (None, *[0] * 5)
    together = jax.jit(jax.vmap(lambda *given: run(given), in_axes=axes))(*stacked)
    for index, given in enumerate(trials):
        alone = run([trials[0][0], *given[1:]])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[index], b)


def test_gradients_of_gradients_and_forward_mode_equal_those_of_single_steps():
    given = factors(3, 20, 5, 6)

    def slope(run, *given):
        def loss(*given):
            outputs, (h, c) = run(False, None, *given)
            return jnp.sum(outputs**2) + jnp.sum(h * c)

        return sum(jnp.sum(g**2) for g in jax.grad(loss, argnums=range(6))(*given))

    def second(run):
        slopes = jax.grad(functools.partial(slope, run), argnums=range(6))(*given)
        return *slopes, jax.jvp(functools.partial(slope, run), given, given)[1]

    actual, expected = (
        jax.jit(second, static_argnums=0)(run) for run in (by_library, step_by_step)
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * np.abs(e).max())


def test_extreme_gates_saturate_and_nan_stays_nan():
    x, kernel, recurrent, _, h, c = factors(2, 40, 3, 16)
    for value, cell in ((200.0, c + 2), (-200.0, 0 * c)):
        bias = jnp.full(64, value)
        _, (_, last) = by_library(False, None, x, kernel, recurrent, bias, h, c)
        expected = c + 2 if value > 0 else cell
        np.testing.assert_allclose(last, expected, atol=1e-6)
    outputs, _ = by_library(False, None, x.at[0, 3, 0].set(jnp.nan), kernel, recurrent, bias, h, c)
    where = np.isnan(np.asarray(outputs)).any(axis=(0, 2))
    assert where.tolist() == [row == 3 for row in range(40)]


def test_it_is_used_where_it_is_worth_it():
    x, _, recurrent, *_ = factors(8, 8, 3, 4)
    assert lstm.is_worth_it(x, recurrent)
    assert not lstm.is_worth_it(x[:1], recurrent)
    assert not lstm.is_worth_it(x.astype(jnp.bfloat16), recurrent)
    with backend.xla_only():
        assert not lstm.is_worth_it(x, recurrent)
