"""The search for a learning rate, or for a pair of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Grid(NamedTuple):
    """Learning rates 10^(k / per_decade) for whole k, rounded."""

    per_decade: int
    digits: int  # significant digits

    def rate(self, k: int) -> float:
        return float(f"{10 ** (k / self.per_decade):.{self.digits}g}")

    def index(self, rate: float) -> int:
        return round(self.per_decade * math.log10(rate))


Pair = tuple[float, float]

HALVES = Grid(2, 1)  # 0.001, 0.003, 0.01, ...
QUARTERS = Grid(4, 2)  # 0.001, 0.0018, 0.0032, 0.0056, 0.01, ...


def search(
    losses_at: Callable[[Sequence[float]], Sequence[float]],
    rates: Iterable[float],
    grid: Grid,
    stride: int = 1,
) -> dict[float, float]:
    """Searches until both neighbors of the best learning rate are worse.

    Args:
      losses_at: returns the losses at a list of learning rates.
      rates: initial learning rates, `stride` apart on the grid.
      grid: all learning rates that may be tried.
      stride: distance to the next learning rate while the best is at an edge, in steps
        of the grid. If it is more than 1, both neighbors of the best are tried last.

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


def search_pair(
    losses_at: Callable[[Sequence[Pair]], Sequence[float]],
    start: Pair,
    grid: Grid,
    strides: Sequence[int],
) -> dict[Pair, float]:
    """Searches until the best pair of learning rates has four worse neighbors.

    Args:
      losses_at: returns the losses at a list of pairs.
      start: initial pair.
      grid: all learning rates that may be tried.
      strides: distances between neighbors in steps of the grid. There is one search for
        each; it starts at the best pair of the previous one.

    Returns:
      The loss at each pair that was tried.
    """
    losses: dict[tuple[int, int], float] = {}

    def best_of(tried: Iterable[tuple[int, int]]) -> tuple[int, int]:
        new = sorted(set(tried) - losses.keys())
        found = losses_at([(grid.rate(i), grid.rate(j)) for i, j in new])
        losses.update(zip(new, found, strict=True))
        return min(sorted(losses), key=lambda pair: losses[pair])

    after = best_of([(grid.index(start[0]), grid.index(start[1]))])
    for stride in strides:
        best = None
        while best != after:
            i, j = best = after
            steps = ((stride, 0), (-stride, 0), (0, stride), (0, -stride))
            after = best_of((i + di, j + dj) for di, dj in steps)
    return {(grid.rate(i), grid.rate(j)): loss for (i, j), loss in losses.items()}


def best_rate(losses: dict[float, float]) -> float:
    """Returns the learning rate with the lowest loss, the smallest of equals."""
    return min(sorted(losses), key=lambda rate: losses[rate])


def best_pair(losses: dict[Pair, float]) -> Pair:
    """Returns the pair with the lowest loss, the smallest of equals."""
    return min(sorted(losses), key=lambda pair: losses[pair])
