"""Normalisation without statistics, channels last."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.named_scope("@local_response_norm")
def local_response_norm(
    x: jax.Array, size: int = 5, *, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 2.0
) -> jax.Array:
    """Each value over a power of the squares around it, across channels: `[..., C]` to the same.

    y_c = x_c / (k + α Σ x_j²)^β over the `size` channels j centred on c, fewer at both ends
    (Krizhevsky et al. 2012, section 3.3, whose constants are the defaults). PyTorch's layer takes
    `size` times this α. The constants may be traced; the sum is in float32 at least.
    """
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    low = (size - 1) // 2
    padded = jnp.pad(squares, [(0, 0)] * (x.ndim - 1) + [(low, size - 1 - low)])
    total = sum(padded[..., shift : shift + x.shape[-1]] for shift in range(size))
    return x * ((k + alpha * total) ** -beta).astype(x.dtype)
