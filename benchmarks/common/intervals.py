"""Means of a few seeds with their confidence intervals, and verdicts on them."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student

MARGIN = 0.01
"""A loss higher by less than this is no worse; in nats, chosen before the runs."""


class Interval(NamedTuple):
    """A mean with its 95% confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Judges the first of two losses, given their difference: first - second."""
        if self.high < 0:
            return "better"
        if self.low > 0:
            return "worse"
        return "no worse" if self.high < MARGIN else "undecided"

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of at least two values with its interval (Student's t).

    All three numbers are NaN where a value is not finite, as after a divergence.
    """
    if not all(map(math.isfinite, values)):
        return Interval(math.nan, math.nan, math.nan)
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns the interval of first - second, paired: the same seeds in both."""
    return interval([a - b for a, b in zip(first, second, strict=True)])
