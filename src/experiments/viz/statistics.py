"""What repeated measurements say: means with their spread, and intervals of differences."""

from collections.abc import Sequence

import numpy as np

Values = Sequence[float] | np.ndarray

CONFIDENCE = 0.95  # of the interval by which a difference is distinguished from noise


def spread(values: Values) -> str:
    """Return mean, standard deviation and number of values as text."""
    array = np.asarray(values, float)
    if len(array) == 1:
        return f"{array[0]:.4g}"
    return f"{array.mean():.4g} ± {array.std(ddof=1):.2g} (n={len(array)})"


def interval_of_difference(a: Values, b: Values, *, paired: bool = False) -> tuple[float, float]:
    """Return the 95 % interval of mean(a) − mean(b), of samples with variances of their own.

    Of pairs it is Student's interval of their differences.

    References:
      Welch 1947, "The generalization of 'Student's' problem when several different population
      variances are involved".
    """
    from scipy.stats import t

    a, b = np.asarray(a, float), np.asarray(b, float)
    if paired:
        a, b = a - b, np.zeros(1)
    difference = a.mean() - b.mean()
    parts = [x.var(ddof=1) / len(x) if len(x) > 1 else 0.0 for x in (a, b)]
    variance = sum(parts)
    if variance == 0:
        return difference, difference
    sizes = zip(parts, (a, b), strict=True)
    freedom = variance**2 / sum(v**2 / (len(x) - 1) for v, x in sizes if len(x) > 1)
    margin = t.ppf((1 + CONFIDENCE) / 2, freedom) * variance**0.5
    return difference - margin, difference + margin


def rank_test(a: Values, b: Values) -> float:
    """Return how likely values this different in rank are without a difference.

    References:
      Mann & Whitney 1947, "On a test of whether one of two random variables is stochastically
      larger than the other".
    """
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(a, b).pvalue)
