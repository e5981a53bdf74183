"""Points in many dimensions as points in the plane."""

import numpy as np


def principal_components(points: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return points [n, d] by their first components, [n, count], and the share of the variance.

    Args:
      count: of the components; where the points have fewer dimensions the rest is 0.

    Returns:
      The components, and of each the share of the variance that it has.

    References:
      Pearson 1901, "On lines and planes of closest fit to systems of points in space".
    """
    centred = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    variances, missing = deviations**2, max(count - len(axes), 0)
    shares = variances / max(variances.sum(), np.finfo(float).tiny)
    found = np.pad(centred @ axes[:count].T, ((0, 0), (0, missing)))
    return found.astype(np.float32), np.pad(shares[:count], (0, missing))


def t_sne(points: np.ndarray, seed: int) -> np.ndarray:
    """Return points [n, d] as points in the plane [n, 2] whose neighbours are the same.

    Distances between far points, and the axes, mean nothing.

    Raises:
      ImportError: scikit-learn is not installed.

    References:
      van der Maaten & Hinton 2008, "Visualizing data using t-SNE".
    """
    from sklearn.manifold import TSNE  # an optional package, with the other one
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, init="pca", perplexity=perplexity, random_state=seed)
    with threadpool_limits(1):  # so few points are slowed down by threads that wait for each other
        return np.asarray(tsne.fit_transform(np.asarray(points, np.float32)))
