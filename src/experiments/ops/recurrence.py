"""Recurrence over time with a backward pass of few, large matrix products.

A cell is split in two. Matrix products stay out of the loop where possible: all inputs are
projected before it, and the gradient of the recurrent kernel is computed after it, where
back-propagation through time as JAX derives it adds up one small product per step. The rest, the
cell's `update`, is differentiated step by step from the pre-activations that the forward pass
saves. On processors with matrix units `ops.lstm` takes the place of this for an LSTM without
peepholes or normalisation.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Carry = tuple[jax.Array, ...]
Parameters = dict[str, jax.Array]


class Cell(NamedTuple):
    """A recurrent cell.

    Args:
      update: `update(z, carry, parameters)` gives the next carry: `states` arrays [B, H], the first
        of them the output; z is `join` of the projections of input and output, both
        [B, gates · H].
      gates: number of gates.
      states: number of arrays of the carry.
      apart: how many of the last gates get the two projections side by side instead of their sum.
    """

    update: Callable[[jax.Array, Carry, Parameters], Carry]
    gates: int
    states: int
    apart: int = 0


def join(inputs: jax.Array, recurrent: jax.Array, width: int) -> jax.Array:
    """Return the sum of two projections, but both of the last `width` columns, side by side."""
    if width == 0:
        return inputs + recurrent
    summed = inputs.shape[-1] - width
    sums = inputs[..., :summed] + recurrent[..., :summed]
    return jnp.concatenate([sums, inputs[..., summed:], recurrent[..., summed:]], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def recur(
    update: Callable[[jax.Array, Carry, Parameters], Carry],
    apart: int,
    reverse: bool,
    inputs: jax.Array,
    bias: jax.Array,
    kernel: jax.Array,
    parameters: Parameters,
    carry: Carry,
    mask: jax.Array | None,
) -> tuple[jax.Array, Carry]:
    """Return the outputs of all steps [T, B, H] and the carry after the last one.

    Args:
      update: see `Cell`; a function of the module level, since it is compared by identity.
      apart: columns of the projections that are not summed.
      reverse: from the last step to the first.
      inputs: [T, B, G], the projected inputs.
      bias: [G], added to them in the loop, which reads them anyway.
      kernel: [H, G], projects the output of the step before.
      parameters: small arrays that `update` needs.
      carry: where to start, each [B, H].
      mask: bool [T, B, 1]; where False the carry stays as it is. None: True everywhere.
    """
    return _forward(update, apart, reverse, inputs, bias, kernel, parameters, carry, mask)[0]


def _forward(update, apart, reverse, inputs, bias, kernel, parameters, carry, mask):
    def step(carry, at):
        inputs, mask = at
        z = join(inputs + bias, carry[0] @ kernel, apart)
        new = _held(update(z, carry, parameters), carry, mask)
        return new, (new[0], z, carry)

    last, (outputs, z, carries) = jax.lax.scan(step, carry, (inputs, mask), reverse=reverse)
    return (outputs, last), (z, carries, kernel, parameters, mask)


def _backward(update, apart, reverse, residuals, cotangents):
    z, carries, kernel, parameters, mask = residuals
    d_outputs, d_last = cotangents
    transposed = kernel.T
    summed = kernel.shape[1] - apart

    def of_recurrent(dz):  # the gradient of the second projection, from that of z
        if apart == 0:
            return dz
        return jnp.concatenate([dz[..., :summed], dz[..., summed + apart :]], axis=-1)

    def step(after, at):
        d_carry, d_parameters = after
        d_output, z, carry, mask = at
        d_carry = (d_carry[0] + d_output, *d_carry[1:])
        _, pull = jax.vjp(lambda *a: _held(update(*a), a[1], mask), z, carry, parameters)
        dz, d_before, d_own = pull(d_carry)
        d_before = (d_before[0] + of_recurrent(dz) @ transposed, *d_before[1:])
        return (d_before, jax.tree.map(jnp.add, d_parameters, d_own)), dz

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    after = (d_last, zeros)
    scanned = (d_outputs, z, carries, mask)
    (d_carry, d_parameters), dz = jax.lax.scan(step, after, scanned, reverse=not reverse)
    before = carries[0].reshape(-1, kernel.shape[0])
    d_kernel = before.T @ of_recurrent(dz).reshape(-1, kernel.shape[1])
    d_inputs = dz[..., : kernel.shape[1]]
    d_bias = jnp.sum(d_inputs, (0, 1))
    return d_inputs, d_bias, d_kernel, d_parameters, d_carry, None


def _held(new: Carry, old: Carry, mask: jax.Array | None) -> Carry:
    """Return `new` where `mask`, else `old`."""
    if mask is None:
        return new
    return tuple(jnp.where(mask, n, o) for n, o in zip(new, old, strict=True))


recur.defvjp(_forward, _backward)
