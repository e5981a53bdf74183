"""Local response normalisation, channels last."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.named_scope("@local_response_norm")
def local_response_norm(
    x: jax.Array, size: int = 5, *, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 2.0
) -> jax.Array:
    """Return x_c / (k + α Σ x_j²)^β, summed over the `size` channels j around c: `[..., C]`.

    There are fewer such channels at both ends. PyTorch's layer takes `size` times this α. The
    constants, those of the paper by default, may be traced; the sum is in float32 at least.

    References:
      Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks",
      section 3.3.
    """
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    low = (size - 1) // 2
    padded = jnp.pad(squares, [(0, 0)] * (x.ndim - 1) + [(low, size - 1 - low)])
    total = sum(padded[..., shift : shift + x.shape[-1]] for shift in range(size))
    return x * ((k + alpha * total) ** -beta).astype(x.dtype)
