"""Ember against AdamW after pretraining: which runs there are, and what they come to.

The learning rate of the body is the best for both arms and all cases together, then
that of the tables the best for each by itself. Both searches have one seed and go on
while the best is at an edge. The best ones run with seeds that no search has seen.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from benchmarks.runs import Run, Runs

T = TypeVar("T")

ARMS = ("ember", "adam")  # optimizers of the tables
SEARCHED = 0  # the seed of the searches
SEEDS = (1, 2, 3, 4, 5)
BODY_RATES = (3e-4, 1e-3, 3e-3)
TABLE_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


class Benchmark(NamedTuple):
    """A comparison of both arms."""

    name: str  # of its file of runs, and of the module that makes them
    score: str  # what of a run is compared
    is_reward: bool  # or a loss, which is to be low
    cases: Sequence[Run]  # what arms are compared in
    table_rate: float  # of the tables while that of the body is searched

    def loss(self, run: Run) -> float:
        return -run[self.score] if self.is_reward else run[self.score]


FINETUNE = Benchmark("finetune", "validation_loss", False, [{}], 1e-2)
PROMPTS = (4, 16, 64)  # in a step
GRPO = Benchmark(
    "grpo", "last_reward", True, [{"batch_size": n} for n in PROMPTS], 1e-3
)


class Arm(NamedTuple):
    """What came of one arm in one case."""

    name: str
    case: Run
    swept: dict[float, Run]  # by learning rate of the tables
    best: float  # of these learning rates
    repeated: list[Run]  # at the best, with other seeds


class Comparison(NamedTuple):
    swept: dict[float, float]  # sum of all losses by learning rate of the body
    body_rate: float  # the best of these
    arms: list[Arm]  # case by case


def compare(benchmark: Benchmark, execute: Callable[[Run], Run]) -> Comparison:
    """Returns a comparison, and does all runs of it that are not on file.

    Args:
      benchmark: which one.
      execute: does a run, given what tells it from others.
    """
    loss, cases = benchmark.loss, benchmark.cases
    runs = Runs(benchmark.name)

    def get(arm: str, case: Run, table: float, body: float, seed: int) -> Run:
        rates = {"learning_rate": table, "body_learning_rate": body}
        settings = {"arm": arm, **case, **rates, "seed": seed}
        return runs.get(settings, lambda: execute(settings))

    def loss_of_all(body: float) -> float:
        found = itertools.product(ARMS, cases, [benchmark.table_rate], [body])
        return sum(loss(get(*settings, SEARCHED)) for settings in found)

    bodies = search(loss_of_all, float, BODY_RATES)
    body = min(bodies, key=lambda rate: bodies[rate])

    def tune(arm: str, case: Run) -> Arm:
        swept = search(
            lambda table: get(arm, case, table, body, SEARCHED), loss, TABLE_RATES
        )
        best = min(swept, key=lambda rate: loss(swept[rate]))
        repeated = [get(arm, case, best, body, seed) for seed in SEEDS]
        return Arm(arm, case, swept, best, repeated)

    arms = [tune(arm, case) for case, arm in itertools.product(cases, ARMS)]
    return Comparison(bodies, body, arms)


def search(
    get: Callable[[float], T], loss: Callable[[T], float], rates: Sequence[float]
) -> dict[float, T]:
    """Tries learning rates until neither the smallest nor the largest is the best.

    Args:
      get: what comes of a learning rate.
      loss: what is to be low in that.
      rates: those to begin with, half a power of ten apart in ascending order.

    Returns:
      What came of all, in ascending order.
    """
    found = {rate: get(rate) for rate in rates}
    while True:
        tried = sorted(found)
        best = min(tried, key=lambda rate: loss(found[rate]))
        if best not in (tried[0], tried[-1]):
            return {rate: found[rate] for rate in tried}
        k = round(2 * math.log10(best)) + (-1 if best == tried[0] else 1)
        further = float(f"{10 ** (k / 2):.0e}")
        found[further] = get(further)


def on_file(benchmark: Benchmark) -> Comparison:
    """Returns a comparison that is finished."""

    def missing(settings: Run) -> Run:
        raise LookupError(
            f"There is no run with {settings} in {benchmark.name}.json: finish it with"
            f" `python -m benchmarks.{benchmark.name}`."
        )

    return compare(benchmark, missing)
