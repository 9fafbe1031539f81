"""Ember against AdamW after pretraining: which runs there are, and how they compare.

The learning rate of the body is the one that is best for both arms in all cases
together; that of the tables is then the best for each arm in each case. Both searches
use one seed. The best learning rates run again with seeds that no search has seen.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import store
from benchmarks.common.search import HALVES, best_rate, search
from benchmarks.common.store import Run, Settings

RESULTS = Path(__file__).parent

ARMS = ("ember", "adam")  # optimizers of the tables
SEARCHED = 0  # the seed of the searches
SEEDS = (1, 2, 3, 4, 5)
BODY_RATES = (3e-4, 1e-3, 3e-3)
TABLE_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


class Benchmark(NamedTuple):
    """A comparison of both arms."""

    name: str  # of its file of runs, and of the module that does them
    score: str  # the result of a run that is compared
    is_reward: bool  # higher is better; otherwise the score is a loss
    cases: Sequence[Settings]  # in which the arms are compared
    table_rate: float  # learning rate of the tables while that of the body is searched

    @property
    def path(self) -> Path:
        """The file of its runs."""
        return RESULTS / f"{self.name}.jsonl"

    def loss(self, run: Run) -> float:
        return -run[self.score] if self.is_reward else run[self.score]


FINETUNE = Benchmark("finetune", "validation_loss", False, [{}], 1e-2)
PROMPTS = (4, 16, 64)  # in a step
GRPO = Benchmark(
    "grpo", "last_reward", True, [{"batch_size": n} for n in PROMPTS], 1e-3
)


class Arm(NamedTuple):
    """One arm in one case."""

    name: str
    case: Settings
    swept: dict[float, Run]  # by learning rate of the tables
    best: float  # of these learning rates
    repeated: list[Run]  # at the best, with other seeds


class Comparison(NamedTuple):
    swept: dict[float, float]  # sum of all losses by learning rate of the body
    body_rate: float  # the best of these
    arms: list[Arm]  # case by case


def compare(benchmark: Benchmark, run_of: Callable[[Settings], Run]) -> Comparison:
    """Returns a comparison.

    Args:
      benchmark: which one.
      run_of: returns the run with some settings.
    """
    loss, cases = benchmark.loss, benchmark.cases

    def get(arm: str, case: Settings, table: float, body: float, seed: int) -> Run:
        rates = {"learning_rate": table, "body_learning_rate": body}
        return run_of({"arm": arm, **case, **rates, "seed": seed})

    def loss_of_all(body: float) -> float:
        found = itertools.product(ARMS, cases, [benchmark.table_rate], [body])
        return sum(loss(get(*settings, SEARCHED)) for settings in found)

    bodies = search(lambda rates: [*map(loss_of_all, rates)], BODY_RATES, HALVES)
    body = best_rate(bodies)

    def tune(arm: str, case: Settings) -> Arm:
        def losses_at(rates: Sequence[float]) -> list[float]:
            return [loss(get(arm, case, rate, body, SEARCHED)) for rate in rates]

        losses = search(losses_at, TABLE_RATES, HALVES)
        swept = {rate: get(arm, case, rate, body, SEARCHED) for rate in losses}
        best = best_rate(losses)
        repeated = [get(arm, case, best, body, seed) for seed in SEEDS]
        return Arm(arm, case, swept, best, repeated)

    arms = [tune(arm, case) for case, arm in itertools.product(cases, ARMS)]
    return Comparison(bodies, body, arms)


def finish(benchmark: Benchmark, execute: Callable[[Settings], Run]) -> Comparison:
    """Returns a comparison, after doing all runs of it that are not on file.

    Args:
      benchmark: which one.
      execute: does the run with some settings and returns its results.
    """

    def run_of(settings: Settings) -> Run:
        execution = functools.partial(execute, settings)
        return store.run_once(benchmark.path, settings, execution, "google-tunix")

    return compare(benchmark, run_of)


def on_file(benchmark: Benchmark) -> Comparison:
    """Returns a comparison whose runs are all finished.

    Raises:
      LookupError: a run is missing.
    """
    runs = store.read(benchmark.path)

    def run_of(settings: Settings) -> Run:
        for run in runs:
            if run["settings"] == settings:
                return run
        raise LookupError(
            f"There is no run with {settings} in {benchmark.path.name}: finish the"
            f" comparison with `python -m benchmarks.post_training.run"
            f" {benchmark.name}`."
        )

    return compare(benchmark, run_of)
