"""Spectral normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.layers import Conv, Dense


class Spectral(nnx.Module):
    """A linear layer without bias over its spectral norm, plus a bias (Miyato et al. 2018).

    The norm σ of the kernel as a matrix [inputs, features] is followed by one step of power
    iteration a call; its vector `u` goes on from call to call in training mode.
    """

    def __init__(self, layer: Dense | Conv, features: int):
        self.layer = layer
        self.bias = nnx.Param(np.zeros(features, np.float32))
        start = np.random.default_rng(0).normal(size=features).astype(np.float32)
        self.u: nnx.Variable = nnx.BatchStat(start / np.linalg.norm(start))
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.layer.kernel[...].astype(jnp.float32)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        fixed, u = jax.lax.stop_gradient(matrix), self.u[...]
        v = _unit(fixed @ u)
        u = _unit(v @ fixed)
        if not self.use_running_average:
            self.u.set_value(u)
        sigma = v @ matrix @ u
        return self.layer(x) / sigma.astype(x.dtype) + self.bias[...]


def _unit(vector: jax.Array) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + 1e-12)
