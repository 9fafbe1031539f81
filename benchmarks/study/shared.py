"""The first study: one learning rate for both tables.

A case is what a run differs in from the others. Each case is tuned first, by a search
for the learning rate of its tables with one seed, and then run at the best one with
seeds that the search has not seen.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.common.search import QUARTERS, best_rate, search
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Losses, Settings

Case = dict[str, Any]

SEEDS = (1, 2, 3, 4, 5)  # the searches use seed 0
RIVALS = ("ember", "adam", "adam95")


class BodySearch(NamedTuple):
    """Learning rates of the body, and what runs with them have in common."""

    rates: tuple[float, ...]
    runs: Case


BODIES = {
    "adamw": BodySearch((1e-3, 2e-3, 4e-3, 8e-3), {}),
    "muon": BodySearch((1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), {"body": "muon"}),
}
BODY_CASES: tuple[Case, ...] = (
    {"arm": "ember", "b2": 0.999, "lr": 0.01},
    {"arm": "adam95", "b2": 0.95, "lr": 0.056},
)
B2S = (0.9, 0.95, 0.99, 0.9999)
BATCHES = (8, 32, 128, 512)
WIDTHS = (48, 192)
LENGTHS = (65_536, 1_048_576)  # tokens

COMPARED = [arm for arm in ARMS if math.isfinite(ARMS[arm].center)]
ARM_CASES: list[Case] = [{"arm": arm} for arm in COMPARED]
CASES: dict[str, list[Case]] = {
    "shared_seeds": ARM_CASES,
    "shared_b2": [{"arm": "ember", "b2": b2} for b2 in B2S],
    "shared_muon": [{"arm": arm, "body": "muon"} for arm in RIVALS],
    "shared_tables": [
        {"arm": "ember", "tables": table} for table in ("embed", "lm_head")
    ],
    "shared_tied": [{"arm": arm, "tied": True} for arm in RIVALS],
    # Short windows, so that the largest batch still makes 32 steps.
    "shared_batch": [
        {"arm": arm, "batch": batch, "window": 16}
        for batch, arm in itertools.product(BATCHES, RIVALS)
    ]
    + [
        decay | {"batch": batch, "window": 16}
        for batch in (BATCHES[0], BATCHES[-1])
        for decay in ({"arm": "ember", "b2": 0.95}, {"arm": "ember_growing"})
    ],
    "shared_size": [
        {"arm": arm, "width": width} for width, arm in itertools.product(WIDTHS, RIVALS)
    ],
    "shared_length": [
        case | {"tokens": tokens}
        for tokens in LENGTHS
        for case in (
            {"arm": "ember"},
            {"arm": "ember", "b2": 0.95},
            {"arm": "ember_growing"},
            {"arm": "adam"},
            {"arm": "adam95"},
        )
    ],
}
STAGES = ("body", "shared_sweep", *CASES)


class WaitingFor(Exception):
    """The answer depends on runs that are not finished."""

    def __init__(self, runs: Sequence[Settings]):
        super().__init__(f"{len(runs)} runs are not finished")
        self.runs = runs


def missing(stage: str, losses: Losses) -> Iterator[Settings]:
    """Returns the runs of a stage that can be done now and are not finished."""
    if stage == "body":
        jobs = [lambda body=body: _body_runs(body) for body in ("adamw", "muon")]
    elif stage == "shared_sweep":
        jobs = [lambda case=case: [tuned(case, losses)] for case in ARM_CASES]
    else:
        jobs = [lambda case=case: seeded(case, losses) for case in CASES[stage]]
    return unfinished(jobs, losses)


def unfinished(
    jobs: Sequence[Callable[[], list[Settings]]], losses: Losses
) -> Iterator[Settings]:
    """Yields the runs of jobs that are not finished, or those that they wait for."""
    for job in jobs:
        try:
            runs = job()
        except WaitingFor as waiting:
            runs = waiting.runs
        yield from (run for run in runs if run not in losses)


def seeded(case: Case, losses: Losses) -> list[Settings]:
    """Returns the runs of a case at its best learning rate.

    Raises:
      WaitingFor: that learning rate is not known yet.
    """
    best = tuned(case, losses)
    return [dataclasses.replace(best, seed=seed) for seed in SEEDS]


def tuned(case: Case, losses: Losses) -> Settings:
    """Returns a case at its best learning rate, with the seed of the search.

    Raises:
      WaitingFor: it is not known yet.
    """
    arm = ARMS[case["arm"]]
    base = start(case, losses)
    if case.keys() == {"arm"}:
        center, reach = arm.center, 2
    else:
        center, reach = tuned({"arm": case["arm"]}, losses).lr, 1
    return best_of(base, center, reach, losses)


def best_of(base: Settings, center: float, reach: int, losses: Losses) -> Settings:
    """Returns settings at their best learning rate.

    Args:
      base: the settings.
      center: learning rate in the middle of the first ones tried.
      reach: how many there are on either side of it, each half a decade further.
      losses: of finished runs.

    Raises:
      WaitingFor: the search is not finished.
    """

    def losses_at(rates: Sequence[float]) -> list[float]:
        runs = [dataclasses.replace(base, lr=rate) for rate in rates]
        return [losses[run] for run in require(runs, losses)]

    middle = QUARTERS.index(center)
    first = [QUARTERS.rate(middle + 2 * i) for i in range(-reach, reach + 1)]
    lr = best_rate(search(losses_at, first, QUARTERS, stride=2))
    return dataclasses.replace(base, lr=lr)


def start(case: Case, losses: Losses) -> Settings:
    """Returns the settings of a case but for its own learning rate."""
    body = case.get("body", "adamw")
    body_lr, searched = best_body_rate(body, losses), BODIES[body].runs
    fixed: Case = {"lr": math.nan, "b2": ARMS[case["arm"]].b2, "body_lr": body_lr}
    if "tables" in case:
        fixed["other_lr"] = tuned({"arm": "adam"}, losses).lr
    run = Settings(**fixed | searched | case)
    found_with = _body_runs(body)[0]
    # The usual rule for another number of tokens in a step.
    scale = math.sqrt(run.batch * run.window / (found_with.batch * found_with.window))
    return dataclasses.replace(run, body_lr=float(f"{body_lr * scale:.3g}"))


def sweep(case: Case, losses: Losses) -> dict[float, float]:
    """Returns the losses of a case with the seed of the search, by learning rate."""
    base = start(case, losses)
    runs = [run for run in losses if dataclasses.replace(base, lr=run.lr) == run]
    return {run.lr: losses[run] for run in sorted(runs, key=lambda run: run.lr)}


def best_body_rate(body: str, losses: Losses) -> float:
    """Returns the learning rate of the body that is best for Ember and Adam together.

    Raises:
      WaitingFor: runs are missing.
    """
    runs = require(_body_runs(body), losses)
    return min(
        BODIES[body].rates,
        key=lambda rate: sum(losses[run] for run in runs if run.body_lr == rate),
    )


def _body_runs(body: str) -> list[Settings]:
    return [
        Settings(body_lr=rate, **BODIES[body].runs, **case)
        for rate in BODIES[body].rates
        for case in BODY_CASES
    ]


def require(runs: list[Settings], losses: Losses) -> list[Settings]:
    if not all(run in losses for run in runs):
        raise WaitingFor([run for run in runs if run not in losses])
    return runs
