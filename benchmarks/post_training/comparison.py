"""Ember against AdamW after pretraining: the runs and their comparison.

In each case, the learning rate of the body is the best for both arms together; the pair
of rates of embedding and head is then searched for each arm. All searches use one seed.
The best pairs are run again with other seeds, and so is Ember with a constant b2 at
Ember's best pair.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import store
from benchmarks.common.intervals import Interval, difference
from benchmarks.common.search import (
    HALVES,
    Pair,
    best_pair,
    best_rate,
    search,
    search_pair,
)
from benchmarks.common.store import Run, Settings
from examples.lm import Config

RESULTS = Path(__file__).parent

ARMS = ("ember", "adam")  # optimizers of the tables
CONSTANT = {"arm": "ember", "b2": 0.999}  # in place of Adafactor's decay
SEARCHED = 0  # the seed of the searches
SEEDS = (1, 2, 3, 4, 5)
BODY_RATES = (3e-4, 1e-3, 3e-3)


class Benchmark(NamedTuple):
    """A comparison of both arms in one or several cases."""

    name: str  # name of its file of runs, and of the module that does them
    score: str  # key of the result that is compared
    is_reward: bool  # True: higher is better. False: the score is a loss
    cases: Sequence[Settings]  # settings in which the arms are compared
    start: Pair  # rates of embedding and head where searches begin

    @property
    def path(self) -> Path:
        """The file of its runs."""
        return RESULTS / f"{self.name}.jsonl"

    def loss(self, run: Run) -> float:
        return -run[self.score] if self.is_reward else run[self.score]

    def losses(self, runs: Sequence[Run]) -> list[float]:
        return [self.loss(run) for run in runs]


FINETUNE = Benchmark("finetune", "validation_loss", False, [{}], (1e-2, 1e-2))
PROMPTS = (4, 16, 64)  # in a step
GRPO = Benchmark(
    "grpo", "last_reward", True, [{"batch_size": n} for n in PROMPTS], (1e-3, 1e-3)
)


class Arm(NamedTuple):
    """One arm in one case."""

    name: str
    searched: dict[Pair, Run]  # by the learning rates of embedding and head
    best: Pair
    repeated: list[Run]  # at the best, with other seeds


class Comparison(NamedTuple):
    """Both arms in one case."""

    case: Settings
    bodies: dict[float, float]  # mean loss of both arms by learning rate of the body
    body_rate: float  # the best of these
    arms: dict[str, Arm]
    constant: list[Run]  # Ember with a constant b2, at Ember's best pair


def compare(
    benchmark: Benchmark, case: Settings, run_of: Callable[[Settings], Run]
) -> Comparison:
    """Returns the comparison of both arms in a case.

    Args:
      benchmark: the benchmark.
      case: one of its cases.
      run_of: function from settings to the run.
    """
    loss = benchmark.loss

    def get(arm: Settings, pair: Pair, body: float, seed: int) -> Run:
        embed, head = pair
        rates = {
            "embed_learning_rate": embed,
            "head_learning_rate": head,
            "body_learning_rate": body,
        }
        return run_of({**arm, **case, **rates, "seed": seed})

    def loss_of_both(body: float) -> float:
        runs = [get({"arm": x}, benchmark.start, body, SEARCHED) for x in ARMS]
        return sum(map(loss, runs)) / len(runs)

    bodies = search(lambda rates: [*map(loss_of_both, rates)], BODY_RATES, HALVES)
    body = best_rate(bodies)

    def tune(name: str) -> Arm:
        arm = {"arm": name}

        def losses_at(pairs: Sequence[Pair]) -> list[float]:
            return [loss(get(arm, pair, body, SEARCHED)) for pair in pairs]

        losses = search_pair(losses_at, benchmark.start, HALVES, strides=(1,))
        searched = {pair: get(arm, pair, body, SEARCHED) for pair in losses}
        best = best_pair(losses)
        repeated = [get(arm, best, body, seed) for seed in SEEDS]
        return Arm(name, searched, best, repeated)

    arms = {name: tune(name) for name in ARMS}
    best = arms["ember"].best
    constant = [get(CONSTANT, best, body, seed) for seed in SEEDS]
    return Comparison(case, bodies, body, arms, constant)


def advantage(
    benchmark: Benchmark, comparisons: Sequence[Comparison]
) -> list[Interval]:
    """Returns the loss of Ember minus that of AdamW, paired by seed, for each case.

    The loss of a reward is its negative. All intervals of a benchmark hold together
    with 95%.
    """
    losses = [
        [benchmark.losses(c.arms[arm].repeated) for arm in ARMS] for c in comparisons
    ]
    return [difference(ember, adam, len(losses)) for ember, adam in losses]


def set_tables(tables: Config, settings: Settings) -> None:
    """Sets the optimizer of the tables; Ember without b2 has Adafactor's decay."""
    tables.defaults.ember.pop("b2")
    tables.update(
        optimizer=settings["arm"],
        embed_learning_rate=settings["embed_learning_rate"],
        head_learning_rate=settings["head_learning_rate"],
        b2=settings.get("b2"),
    )


def finish(benchmark: Benchmark, execute: Callable[[Settings], Run]) -> None:
    """Does all runs of a benchmark that are not on file.

    Args:
      benchmark: the benchmark.
      execute: function that does a run and returns its results.
    """

    def run_of(settings: Settings) -> Run:
        execution = functools.partial(execute, settings)
        return store.run_once(benchmark.path, settings, execution, "google-tunix")

    for case in benchmark.cases:
        compare(benchmark, case, run_of)


def on_file(benchmark: Benchmark) -> list[Comparison]:
    """Returns the comparisons of a benchmark whose runs are all finished, by case.

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

    return [compare(benchmark, case, run_of) for case in benchmark.cases]
