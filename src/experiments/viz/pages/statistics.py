"""What repeated measurements say: means with their spread, and intervals of differences."""

import math
from collections.abc import Sequence

import numpy as np

Values = Sequence[float] | np.ndarray | float
"""What several runs gave, or a number that is exact, such as a count or a bound."""

CONFIDENCE = 0.95  # of the interval by which a difference is distinguished from noise


def spread(values: Values) -> str:
    """Return mean, standard deviation and number of values as text."""
    array = np.asarray(values, float)
    if array.size == 1:
        return f"{array.item():.4g}"
    return f"{array.mean():.4g} ± {array.std(ddof=1):.2g} (n={len(array)})"


def interval_of_difference(a: Values, b: Values, *, paired: bool = False) -> tuple[float, float]:
    """Return the 95 % interval of mean(a) − mean(b), of samples with variances of their own.

    Of pairs it is Student's interval of their differences. A number by itself is exact. The spread
    of a single run is not known, so the interval has no ends; nor has that of samples without any
    spread, unless they are so many that a permutation test would tell them apart.

    References:
      Welch 1947, "The generalization of 'Student's' problem when several different population
      variances are involved"; Fisher 1935, "The design of experiments", section 21.
    """
    from scipy.stats import t

    a, b = np.asarray(a, float), np.asarray(b, float)
    if paired:
        a, b = a - b, np.zeros(())
    difference = float(a.mean() - b.mean())
    sizes = [len(x) for x in (a, b) if x.ndim]
    if 1 in sizes:
        return -math.inf, math.inf
    parts = [x.var(ddof=1) / len(x) for x in (a, b) if x.ndim]
    variance = float(sum(parts))
    if variance == 0:
        splits = math.comb(sum(sizes), sizes[0]) if len(sizes) == 2 else 2 ** sum(sizes)
        decided = not sizes or 2 / splits <= 1 - CONFIDENCE
        return (difference, difference) if decided else (-math.inf, math.inf)
    freedom = variance**2 / sum(v**2 / (n - 1) for v, n in zip(parts, sizes, strict=True))
    margin = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return difference - margin, difference + margin


def rank_test(a: Values, b: Values) -> float:
    """Return how likely values this different in rank are without a difference.

    References:
      Mann & Whitney 1947, "On a test of whether one of two random variables is stochastically
      larger than the other".
    """
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(a, b).pvalue)
