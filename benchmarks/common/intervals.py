"""Means over a few seeds with confidence intervals, and verdicts on differences."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student

MARGIN = 0.01
"""Non-inferiority margin in nats, chosen before the runs."""


class Interval(NamedTuple):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The verdict on the first of two losses, for an interval of first - second."""
        if self.high < 0:
            return "better"
        if self.low > 0:
            return "worse"
        return "non-inferior" if self.high < MARGIN else "undecided"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def interval(values: Sequence[float], n_comparisons: int = 1) -> Interval:
    """Returns the mean of at least two values with its interval (Student's t).

    All three numbers are NaN if a value is not finite, as after a divergence.

    Args:
      values: one value for each run.
      n_comparisons: number of intervals that hold together with 95% (Bonferroni).
    """
    if not all(map(math.isfinite, values)):
        return Interval(math.nan, math.nan, math.nan)
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(student.ppf(1 - 0.025 / n_comparisons, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def difference(
    first: Sequence[float], second: Sequence[float], n_comparisons: int = 1
) -> Interval:
    """Returns the interval of first - second, paired: the same seeds in both."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return interval(differences, n_comparisons)
