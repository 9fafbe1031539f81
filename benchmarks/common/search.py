"""The search for a learning rate."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Grid(NamedTuple):
    """Learning rates 10^(k / per_decade) for whole k, rounded."""

    per_decade: int
    digits: int  # that are kept

    def rate(self, k: int) -> float:
        return float(f"{10 ** (k / self.per_decade):.{self.digits}g}")

    def index(self, rate: float) -> int:
        return round(self.per_decade * math.log10(rate))


HALVES = Grid(2, 1)  # 0.001, 0.003, 0.01, ...
QUARTERS = Grid(4, 2)  # 0.001, 0.0018, 0.0032, 0.0056, 0.01, ...


def search(
    losses_at: Callable[[Sequence[float]], Sequence[float]],
    rates: Iterable[float],
    grid: Grid,
    stride: int = 1,
) -> dict[float, float]:
    """Searches until the best learning rate has a worse one on either side.

    Args:
      losses_at: returns the losses at some learning rates.
      rates: those to begin with, `stride` apart on the grid.
      grid: the learning rates there are.
      stride: how far beyond an edge to go while the best is there, in steps of the
        grid. If it is more than 1, both neighbors of the best are tried in the end.

    Returns:
      The loss at each learning rate that was tried, in ascending order.
    """
    losses: dict[int, float] = {}

    def best_of(tried: Iterable[int]) -> int:
        new = sorted(set(tried) - losses.keys())
        losses.update(zip(new, losses_at([grid.rate(k) for k in new]), strict=True))
        return min(sorted(losses), key=lambda k: losses[k])

    best = best_of(map(grid.index, rates))
    while best in (min(losses), max(losses)):
        best = best_of([best - stride if best == min(losses) else best + stride])
    if stride > 1:
        best_of([best - 1, best + 1])
    return {grid.rate(k): losses[k] for k in sorted(losses)}


def best_rate(losses: dict[float, float]) -> float:
    """Returns the learning rate with the lowest loss, the smallest of equals."""
    return min(sorted(losses), key=lambda rate: losses[rate])
