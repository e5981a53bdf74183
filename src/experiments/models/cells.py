"""The recurrent cells: what becomes of a step's pre-activations and the state.

Each is a `Cell` for `experiments.ops.recurrence.recur`. With z the sum of the projections of input
and previous output, h the output and c the cell state:

    rnn            h' = tanh(z)                                                  (Elman 1990)
    lstm           c' = σ(z_f) c + σ(z_i) tanh(z_g),  h' = σ(z_o) tanh(c')
                   (Hochreiter & Schmidhuber 1997; the forget gate: Gers et al. 2000)
    peephole_lstm  z_i and z_f also see p_i c and p_f c, z_o also p_o c'         (Gers & Schmidhuber
                   2000)
    gru            h' = (1 − u) n + u h,  n = tanh(x_n + r (h_n + b))             (Cho et al. 2014,
                   with the reset gate behind the matrix product as in cuDNN)

Of each there is a layer-normalised form (Ba et al. 2016, equations 20 to 22): the projection of h
is normalised, and the cell state on its way to the output. The projection of the input is
normalised outside of the recurrence.
"""

import jax
import jax.numpy as jnp

from experiments.ops.recurrence import Carry, Cell, Parameters, join


def layer_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """(x − mean) / deviation over the last axis, times a scale (Ba et al. 2016, equation 4)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    deviation = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(deviation**2, axis=-1, keepdims=True)
    return (deviation * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype) * scale


def _rnn(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
    return (jnp.tanh(z),)


def _lstm(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
    _, c = carry
    i, f, g, o = jnp.split(z, 4, axis=-1)
    peephole = parameters.get("peephole")
    if peephole is not None:
        i, f = i + peephole[0] * c, f + peephole[1] * c
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    if peephole is not None:
        o = o + peephole[2] * c
    seen = layer_norm(c, parameters["cell_scale"]) if "cell_scale" in parameters else c
    return jax.nn.sigmoid(o) * jnp.tanh(seen), c


def _gru(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
    (h,) = carry
    r, u, from_input, from_output = jnp.split(z, 4, axis=-1)
    n = jnp.tanh(from_input + jax.nn.sigmoid(r) * (from_output + parameters["bias"]))
    u = jax.nn.sigmoid(u)
    return ((1 - u) * n + u * h,)


CELLS = {
    "rnn": Cell(_rnn, gates=1, states=1),
    "lstm": Cell(_lstm, gates=4, states=2),
    "peephole_lstm": Cell(_lstm, gates=4, states=2),
    "gru": Cell(_gru, gates=3, states=1, apart=1),
}


def _normalised(cell: Cell) -> Cell:
    """The cell with its recurrent projection layer-normalised; it sees all of it apart."""

    def update(z: jax.Array, carry: Carry, parameters: Parameters) -> Carry:
        inputs, recurrent = jnp.split(z, 2, axis=-1)
        recurrent = layer_norm(recurrent, parameters["recurrent_scale"])
        width = cell.apart * recurrent.shape[-1] // cell.gates
        return cell.update(join(inputs, recurrent, width), carry, parameters)

    return cell._replace(update=update, apart=cell.gates)


NORMALISED_CELLS = {name: _normalised(cell) for name, cell in CELLS.items()}
