"""The search for a learning rate, or for a pair of them, on a grid of quarter decades.

The grid is 0.001, 0.0018, 0.0032, 0.0056, 0.01, ...
"""

import math
from collections.abc import Callable, Iterable, Sequence

Pair = tuple[float, float]


def rate_at(k: int) -> float:
    """Returns 10^(k / 4), to two digits."""
    return float(f"{10 ** (k / 4):.2g}")


def index_of(rate: float) -> int:
    """Returns the place on the grid that is nearest to a learning rate."""
    return round(4 * math.log10(rate))


def search(
    losses_at: Callable[[Sequence[float]], Sequence[float]], rates: Iterable[float]
) -> float:
    """Searches until both neighbors of the best learning rate are worse.

    Args:
      losses_at: returns the losses at a list of learning rates.
      rates: initial learning rates, two steps of the grid apart. While the best is the
        lowest or the highest, the search continues two steps further.

    Returns:
      The learning rate with the lowest loss, the smallest of equals.
    """
    losses: dict[int, float] = {}

    def best_of(tried: Iterable[int]) -> int:
        new = sorted(set(tried) - losses.keys())
        losses.update(zip(new, losses_at([rate_at(k) for k in new]), strict=True))
        return min(sorted(losses), key=lambda k: losses[k])

    best = best_of(map(index_of, rates))
    while best in (min(losses), max(losses)):
        best = best_of([best - 2 if best == min(losses) else best + 2])
    return rate_at(best_of([best - 1, best + 1]))


def search_pair(
    losses_at: Callable[[Sequence[Pair]], Sequence[float]],
    start: Pair,
    strides: Sequence[int],
) -> dict[Pair, float]:
    """Searches until the best pair of learning rates has four worse neighbors.

    Args:
      losses_at: returns the losses at a list of pairs.
      start: initial pair.
      strides: distances between neighbors in steps of the grid. There is one search for
        each; it starts at the best pair of the previous one.

    Returns:
      The loss at each pair that was tried.
    """
    losses: dict[tuple[int, int], float] = {}

    def best_of(tried: Iterable[tuple[int, int]]) -> tuple[int, int]:
        new = sorted(set(tried) - losses.keys())
        found = losses_at([(rate_at(i), rate_at(j)) for i, j in new])
        losses.update(zip(new, found, strict=True))
        return min(sorted(losses), key=lambda pair: losses[pair])

    after = best_of([(index_of(start[0]), index_of(start[1]))])
    for stride in strides:
        best = None
        while best != after:
            i, j = best = after
            steps = ((stride, 0), (-stride, 0), (0, stride), (0, -stride))
            after = best_of((i + di, j + dj) for di, dj in steps)
    return {(rate_at(i), rate_at(j)): loss for (i, j), loss in losses.items()}


def best_pair(losses: dict[Pair, float]) -> Pair:
    """Returns the pair with the lowest loss, the smallest of equals."""
    return min(sorted(losses), key=lambda pair: losses[pair])
