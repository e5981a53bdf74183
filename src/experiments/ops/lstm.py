"""All steps of an LSTM in one operation of the C library (`lstm.c`), in float32.

There is an operation for the forward and one for the backward pass; the gradients of the kernels
are matrix products of their results. `_steps` and `_steps_back` compute the same in JAX, from which
derivatives of higher order and in forward mode follow.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad

from experiments.ops.backend import is_xla_only, usable
from experiments.ops.primitives import Aliases, define, trials
from experiments.ops.recurrence import Carry

WORTH = 64  # fewest steps of all sequences together for which packing the kernels pays


def is_worth_it(x: jax.Array, recurrent: jax.Array) -> bool:
    """Return True if `lstm` can take inputs [T, B, F] and a kernel, and is faster than a scan."""
    # `is_xla_only` comes first: an exported program for any batch size has no number of rows
    return not is_xla_only() and x.shape[0] * x.shape[1] >= WORTH and usable(x, recurrent)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lstm(
    reverse: bool,
    x: jax.Array,
    kernel: jax.Array,
    recurrent: jax.Array,
    bias: jax.Array,
    start: Carry,
    mask: jax.Array | None,
) -> tuple[jax.Array, Carry]:
    """Return the outputs of all steps [T, B, H], and output and cells [B, H] after the last one.

    Args:
      reverse: from the last step to the first.
      x: [T, B, F], the inputs.
      kernel: [F, 4 · H], projects them to the gates i, f, g and o (`models.recurrent_layers`).
      recurrent: [H, 4 · H], projects the output of the step before.
      bias: [4 · H].
      start: output and cells before the first step.
      mask: bool [T, B, 1]; where False the state stays as it is. None: True everywhere.
    """
    return _forward(reverse, x, kernel, recurrent, bias, start, mask, save=False)[0]


def _forward(reverse, x, kernel, recurrent, bias, start, mask, save=True):
    moves = jnp.ones(x.shape[:2], bool) if mask is None else mask[..., 0]
    factors = (x, kernel, recurrent, bias, *start, moves)
    outputs, cells, gates = _one_trial(lstm_p, *factors, reverse=reverse, save=save)
    last = 0 if reverse else -1
    residuals = (x, kernel, recurrent, start, moves, outputs, cells, gates)
    return (outputs, (outputs[last], cells[last])), residuals


def _backward(reverse, residuals, cotangents):
    x, kernel, recurrent, start, moves, outputs, cells, gates = residuals
    d_outputs, d_ends = cotangents
    factors = (gates, cells, start[1], recurrent, moves, d_outputs, *d_ends)
    dz, dh, dc = _one_trial(lstm_back_p, *factors, reverse=reverse)
    rows = dz.reshape(-1, dz.shape[-1])
    d_kernel, d_recurrent = (
        seen.reshape(-1, seen.shape[-1]).T @ rows
        for seen in (x, _before(outputs, start[0], reverse))
    )
    dx = (rows @ kernel.T).reshape(x.shape)
    return dx, d_kernel, d_recurrent, jnp.sum(rows, axis=0), (dh, dc), None


lstm.defvjp(_forward, _backward)


def _before(states, start, reverse):
    """Return the states [T, B, H] before each step, from those after each step."""
    states = [states[1:], start[None]] if reverse else [start[None], states[:-1]]
    return jnp.concatenate(states)


def _steps(x, kernel, recurrent, bias, h, c, moves, *, reverse, save):
    """Return outputs, cells and gates of all steps of one trial."""

    def step(before, at):
        x, moves = at
        i, f, g, o = jnp.split(x @ kernel + before[0] @ recurrent + bias, 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * before[1] + i * g
        h = jnp.where(moves, o * jnp.tanh(c), before[0])
        c = jnp.where(moves, c, before[1])
        return (h, c), (h, c, jnp.concatenate([i, f, g, o], axis=-1))

    _, (outputs, cells, gates) = jax.lax.scan(step, (h, c), (x, moves[..., None]), reverse=reverse)
    return [outputs, cells, gates if save else gates[..., :0]]


def _steps_back(gates, cells, c, recurrent, moves, d_outputs, dh, dc, *, reverse):
    """Return gradients of one trial: of z, of the first output and of the first cells."""

    def step(after, at):
        gates, cell, before, moves, d_output = at
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        seen, dh = jnp.tanh(cell), after[0] + d_output
        dc = after[1] + dh * o * (1 - seen**2)
        of_sigmoid = (dc * g * i * (1 - i), dc * before * f * (1 - f), dh * seen * o * (1 - o))
        di, df, do = of_sigmoid
        dz = jnp.concatenate([di, df, dc * i * (1 - g**2), do], axis=-1)
        dz = jnp.where(moves, dz, 0)
        dh = jnp.where(moves, dz @ recurrent.T, dh)
        return (dh, jnp.where(moves, dc * f, after[1])), dz

    scanned = (gates, cells, _before(cells, c, reverse), moves[..., None], d_outputs)
    (dh, dc), dz = jax.lax.scan(step, (dh, dc), scanned, reverse=not reverse)
    return [dz, dh, dc]


lstm_p, lstm_back_p = Primitive("lstm_forward"), Primitive("lstm_backward")
lstm_p.multiple_results = lstm_back_p.multiple_results = True


def _one_trial(primitive: Any, *factors: jax.Array, **parameters: bool) -> list[jax.Array]:
    results = primitive.bind(*(factor[None] for factor in factors), **parameters)
    return [result[0] for result in results]


@lstm_p.def_abstract_eval
def _(x, kernel, recurrent, *others, reverse, save):
    hidden = recurrent.shape[1]
    places = (trials(x, kernel, recurrent, *others), *x.shape[1:3])
    return [x.update(shape=(*places, w)) for w in (hidden, hidden, 4 * hidden if save else 0)]


@lstm_back_p.def_abstract_eval
def _(gates, cells, *others, reverse):
    count, (steps, batch, hidden) = trials(gates, cells, *others), cells.shape[1:]
    state = (count, batch, hidden)
    shapes = [(count, steps, batch, 4 * hidden), state, state]
    return [gates.update(shape=shape) for shape in shapes]


def _derive(operation, factors, tangents, **parameters):
    """Derive an operation in forward mode, by its steps in JAX."""

    def all_trials(*factors):
        count = trials(*factors)
        wide = [jnp.broadcast_to(a, (count, *a.shape[1:])) for a in factors]
        return jax.vmap(functools.partial(operation, **parameters))(*wide)

    def filled(tangent: Any) -> Any:
        if not isinstance(tangent, ad.Zero):
            return tangent
        like: Any = tangent.aval
        return np.zeros(like.shape, like.dtype)

    return jax.jvp(all_trials, tuple(factors), tuple(map(filled, tangents)))


def _in_place(context: Any) -> Aliases:
    """Let the gradients of z take the memory of the gates."""
    gates, dz = context.avals_in[0], context.avals_out[0]
    return {0: 0} if gates.shape == dz.shape else {}


define(lstm_p, lambda reverse, save: [reverse])
define(lstm_back_p, lambda reverse: [reverse], _in_place)
ad.primitive_jvps[lstm_p] = functools.partial(_derive, _steps)
ad.primitive_jvps[lstm_back_p] = functools.partial(_derive, _steps_back)
