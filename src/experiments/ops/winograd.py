"""Winograd's minimal filtering: a 3x3 convolution with a quarter of the multiplications.

F(m x m, 3 x 3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), eq. 8:
an m x m tile of the output is `A^T [(G g G^T) * (B^T d B)] A` for the 3x3 kernel g and the
(m + 2) x (m + 2) tile d of the input. Over channels the elementwise product becomes (m + 2)^2
matrix products, of all tiles with all channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.ops.backend import usable
from experiments.ops.windows import WORTH, multiply_matrices

SMALL = 2**15  # numbers of a matrix that the C library multiplies faster than XLA


def winograd_conv(x: jax.Array, kernel: jax.Array, pads) -> jax.Array:
    """Cross-correlate `x` `[N, H, W, C_in]` with `kernel` `[3, 3, C_in, C_out]` at stride 1.

    Tiles are 4 x 4, but 2 x 2 on images of 4 or less, where transforming the kernel to 6 x 6 costs
    more than it saves.

    Args:
        pads: one `(low, high)` pair per spatial dimension.

    Returns:
        `[N, H + pads - 2, W + pads - 2, C_out]`
    """
    height, width = (s + sum(p) - 2 for s, p in zip(x.shape[1:3], pads, strict=True))
    m = 4 if min(height, width) > 4 else 2
    n, c_in, (rows, columns) = x.shape[0], x.shape[3], (-(-height // m), -(-width // m))
    B_T, G, A_T = minimal_filtering(m)

    # Tiles overlap by two: with the image cut in blocks of m, a tile is a block and the first two
    # rows (or columns) of the next. Axes: [N, rows, m, columns, m, C].
    full = ((rows + 1) * m, (columns + 1) * m)
    pads = [(p[0], f - s - p[0]) for p, f, s in zip(pads, full, x.shape[1:3], strict=True)]
    d = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))
    d = d.reshape(n, rows + 1, m, columns + 1, m, c_in)
    d = transform(B_T, with_next(unstack(d, 2), axis=1), axis=0)
    d = transform(B_T, with_next(unstack(d, 4), axis=3), axis=1)
    g = both_axes(G, kernel)
    # One batch dimension: with more, XLA transposes a whole operand for the kernel's gradient.
    d, g = d.reshape((m + 2) ** 2, -1, c_in), g.reshape((m + 2) ** 2, c_in, -1)
    small = g[0].size <= SMALL and 2 * d.size * kernel.shape[3] >= WORTH
    y = multiply_matrices(d, g) if small and usable(x, kernel) else d @ g
    y = both_axes(A_T, y.reshape(m + 2, m + 2, n, rows, columns, -1)).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(n, rows * m, columns * m, -1)[:, :height, :width]


def minimal_filtering(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `B^T` `[m + 2, m + 2]`, `G` `[m + 2, 3]` and `A^T` `[m, m + 2]` of F(m, 3).

    By the algorithm of Toom and Cook polynomials are multiplied through their values at m + 1
    points and at infinity. The points decide the rounding error: with 64 channels in float32 the
    largest, relative to the largest output, is 6e-6 for m = 4 with the usual 0, +-1, +-2, but
    1.3e-6 with 0, +-3/4, +-3/2 (which are exact in binary) and 0.9e-6 for the direct sum.
    """
    points = np.array({2: [0, 1, -1], 4: [0, 3 / 4, -3 / 4, 3 / 2, -3 / 2]}[m])
    size = m + 2
    A_T, G, B_T = np.zeros((m, size)), np.zeros((size, 3)), np.zeros((size, size))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        A_T[:, i] = point ** np.arange(m)
        G[i] = point ** np.arange(3) / np.prod(point - others)
        B_T[i, :-1] = np.poly(others)[::-1]
    A_T[-1, -1] = G[-1, -1] = 1
    B_T[-1] = np.poly(points)[::-1]
    return B_T, G, A_T


def transform(matrix: np.ndarray, parts: list[jax.Array], axis: int) -> jax.Array:
    """Return `matrix` times the vector of `parts`, its entries stacked along a new `axis`.

    The matrix is tiny and mostly zeros, so that sums that are written out become one loop.
    """
    sums = []
    for row in matrix:
        terms = [p if c == 1 else c * p for c, p in zip(row.tolist(), parts, strict=True) if c]
        sums.append(sum(terms[1:], start=terms[0]))
    return jnp.stack(sums, axis)


def both_axes(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Multiply `matrix` along each of the first two axes of `x`, `[j, j, ...]` to `[i, i, ...]`.

    This is one matrix product with its Kronecker square: sums that are written out, and their
    gradients, are among the loops that XLA takes longest to compile.
    """
    rows, columns = matrix.shape
    square = jnp.asarray(np.kron(matrix, matrix), x.dtype)
    return (square @ x.reshape(columns**2, -1)).reshape(rows, rows, *x.shape[2:])


def unstack(x: jax.Array, axis: int) -> list[jax.Array]:
    """Return the slices of `x` along `axis` by a split; its gradient is one concatenation."""
    return [jnp.squeeze(part, axis) for part in lax.split(x, [1] * x.shape[axis], axis)]


def with_next(blocks: list[jax.Array], axis: int) -> list[jax.Array]:
    """Return the m places in each block along `axis`, then the first two of the block after it."""
    size = blocks[0].shape[axis] - 1
    here = [lax.slice_in_dim(b, 0, size, axis=axis) for b in blocks]
    return here + [lax.slice_in_dim(b, 1, size + 1, axis=axis) for b in blocks[:2]]
