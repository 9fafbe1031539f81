"""The runs of the study. Which ones there are depends on the results of others.

A case contains the settings in which a run differs from the defaults. Each case is
tuned by a search over the learning rates of its two tables with seed 0, and then run at
the best pair with other seeds. PLAN.md gives the reasons for these cases.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.common.search import (
    Pair,
    best_pair,
    index_of,
    rate_at,
    search,
    search_pair,
)
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Losses, Settings

Case = dict[str, Any]

SEEDS = (1, 2, 3, 4, 5)
FEW_SEEDS = (1, 2, 3)  # of the larger model
# The rate of the body is the best for Ember and Adam together; it is searched with one
# rate for both tables.
BODY_RATES = {
    "adamw": (1e-3, 2e-3, 4e-3, 8e-3),
    "muon": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
}
BODY_CASES: tuple[Case, ...] = (
    {"arm": "ember", "lr": 0.01},
    {"arm": "adam95", "lr": 0.056},
)
RIVALS = ("ember_adafactor", "adam80", "adam", "ember")
BATCHES = (8, 32, 128, 512)
WIDTHS = (48, 192)
LENGTHS = (65_536, 1_048_576)  # tokens
LARGE: Case = {"width": 256, "layers": 4, "vocab": 16_384, "tokens": 1_048_576}
FACTORS = (0.25, 0.5, 2.0, 4.0)  # by which rates are mistuned
# Learning rates 10^(k/4) of embedding and head, a factor of 3.2 apart.
GRID = (range(-7, 4, 2), range(-12, -1, 2))

CASES: dict[str, list[Case]] = {
    "arms": [
        *({"arm": arm} for arm in RIVALS),
        {"arm": "adam95"},
        {"arm": "adam80_995", "head_arm": "adam80_96"},
        {"arm": "adam_adafactor"},
        {"arm": "amsgrad"},
        {"arm": "adafactor"},
        {"arm": "row_only"},
        {"arm": "sm3"},
        {"arm": "muon"},
        *({"arm": arm} for arm in ARMS if arm.startswith("balanced")),
        {"arm": "ember_adafactor", "head_arm": "ember_centered"},
    ],
    "mixed": [
        {"arm": embed, "head_arm": head}
        for embed, head in itertools.permutations(RIVALS[:2])
    ],
    "linux": [{"arm": arm, "text": "linux"} for arm in RIVALS],
    "tied": [{"arm": arm, "tied": True} for arm in RIVALS],
    "muon": [{"arm": arm, "body": "muon"} for arm in RIVALS],
    # Short windows, so that a run with the largest batch still has 32 steps.
    "batch": [
        {"arm": arm, "batch": batch, "window": 16}
        for batch, arm in itertools.product(BATCHES, RIVALS)
    ],
    "width": [
        {"arm": arm, "width": width} for width, arm in itertools.product(WIDTHS, RIVALS)
    ],
    "length": [
        {"arm": arm, "tokens": tokens}
        for tokens, arm in itertools.product(LENGTHS, RIVALS)
    ],
    "decay": [{"arm": arm, "weight_decay": 0.1} for arm in RIVALS[:2]],
    "rare": [
        {"arm": arm, "frequencies": True}
        for arm in ("ember_adafactor", "ember", "adam95", "adam", "amsgrad")
    ],
    "rounding": [
        {"arm": RIVALS[0], "rounding": rounding, **longest}
        for longest in ({}, {"tokens": LENGTHS[-1]})
        for rounding in ("nearest", "stochastic")
    ],
    "large": [LARGE | {"arm": arm} for arm in RIVALS[:3]],
}
STAGES = ("body", *CASES, "lr_grid", "mistuned")


class Unfinished(Exception):
    """The answer depends on runs that are not finished."""

    def __init__(self, runs: list[Settings]):
        super().__init__(f"{len(runs)} runs are not finished")
        self.runs = runs


def missing(
    jobs: Sequence[Callable[[], list[Settings]]], losses: Losses
) -> Iterator[Settings]:
    """Yields the unfinished runs of jobs, or those on which the jobs depend."""
    for job in jobs:
        try:
            runs = job()
        except Unfinished as unfinished:
            runs = unfinished.runs
        yield from (run for run in runs if run not in losses)


def jobs(stage: str, losses: Losses) -> list[Callable[[], list[Settings]]]:
    """Returns functions that return the runs of a stage or raise `Unfinished`."""
    if stage == "body":
        return [lambda body=body: body_runs(body) for body in BODY_RATES]
    if stage == "lr_grid":
        return [lambda arm=arm: lr_grid(arm, losses) for arm in RIVALS[:2]]
    if stage == "mistuned":
        return [lambda arm=arm: [*mistuned(arm, losses).values()] for arm in RIVALS[:2]]
    return [lambda case=case: seeded(case, losses) for case in CASES[stage]]


def require(runs: list[Settings], losses: Losses) -> list[float]:
    """Returns the losses of runs.

    Raises:
      Unfinished: a run is not finished. So does every function below that needs it.
    """
    if unfinished := [run for run in runs if run not in losses]:
        raise Unfinished(unfinished)
    return [losses[run] for run in runs]


def name_of(stage: str, case: Case) -> str:
    """Returns the name of a row of the evidence, such as `batch/ember/8/16`."""
    return "/".join(map(str, (stage, *case.values())))


def main(case: Case) -> Case:
    """Returns the case of the same optimizers in the main setting."""
    return {key: case[key] for key in ("arm", "head_arm") if key in case}


def rates(run: Settings) -> Pair:
    assert run.head_lr is not None
    return run.lr, run.head_lr


def seeded(case: Case, losses: Losses) -> list[Settings]:
    """Returns the runs of a case at its best learning rates."""
    best = tuned(case, losses)
    seeds = FEW_SEEDS if case.keys() >= LARGE.keys() else SEEDS
    return [dataclasses.replace(best, seed=seed) for seed in seeds]


def tuned(case: Case, losses: Losses) -> Settings:
    """Returns a case at its best learning rates, with the seed of the search."""
    base = untuned(case, losses)
    if "tied" in case:
        return tuned_rate(base, rates(tuned(main(case), losses))[1], losses)
    if "frequencies" in case:
        lr, head_lr = rates(tuned(main(case), losses))
    elif "rounding" in case:
        in_float32 = {key: x for key, x in case.items() if key != "rounding"}
        lr, head_lr = rates(tuned(in_float32, losses))
    elif case.keys() >= LARGE.keys():
        scale = math.sqrt(Settings.width / base.width)
        lr, head_lr = (scale * x for x in rates(tuned(main(case), losses)))
    else:
        lr, head_lr = best_pair(searched(case, losses))
    return dataclasses.replace(base, lr=lr, head_lr=head_lr)


def tuned_rate(base: Settings, center: float, losses: Losses) -> Settings:
    """Returns settings at their best single learning rate, searched from a center."""

    def losses_at(rates: Sequence[float]) -> list[float]:
        return require([dataclasses.replace(base, lr=rate) for rate in rates], losses)

    k = index_of(center)
    start = [rate_at(i) for i in (k - 2, k, k + 2)]
    return dataclasses.replace(base, lr=search(losses_at, start))


def losses_by_pair(
    base: Settings, losses: Losses
) -> Callable[[Sequence[Pair]], list[float]]:
    """Returns a function from pairs of rates to the losses of `base` there."""

    def losses_at(pairs: Sequence[Pair]) -> list[float]:
        runs = [dataclasses.replace(base, lr=lr, head_lr=head) for lr, head in pairs]
        return require(runs, losses)

    return losses_at


def tried(base: Settings, losses: Losses) -> dict[Pair, float]:
    """Returns all finished losses of `base`, by learning rates of its tables."""
    return {
        rates(run): loss
        for run, loss in losses.items()
        if run.head_lr is not None
        and dataclasses.replace(base, lr=run.lr, head_lr=run.head_lr) == run
    }


def searched(case: Case, losses: Losses) -> dict[Pair, float]:
    """Returns the losses in the search of a case, by learning rates of its tables."""
    losses_at = losses_by_pair(untuned(case, losses), losses)
    if case == main(case):
        head_arm = case.get("head_arm", case["arm"])
        start = ARMS[case["arm"]].start[0], ARMS[head_arm].start[1]
        return search_pair(losses_at, start, strides=(2, 1))
    start = rates(tuned(main(case), losses))
    return search_pair(losses_at, start, strides=(1,))


def untuned(case: Case, losses: Losses) -> Settings:
    """Returns the settings of a case without learning rates of its tables."""
    body_lr = best_body_rate(case.get("body", "adamw"), losses)
    run = Settings(lr=math.nan, body_lr=body_lr, **case)
    # The usual rule for a different number of tokens in a step.
    scale = math.sqrt(run.batch * run.window / (Settings.batch * Settings.window))
    return dataclasses.replace(run, body_lr=float(f"{body_lr * scale:.3g}"))


def best_body_rate(body: str, losses: Losses) -> float:
    """Returns the body's learning rate that is best for Ember and Adam together."""
    return best_body_rate_of(body_runs(body), losses)


def best_body_rate_of(runs: Sequence[Settings], losses: Losses) -> float:
    """Returns the body's learning rate at which the losses of runs add up to least."""
    require([*runs], losses)
    return min(
        (run.body_lr for run in runs),
        key=lambda rate: sum(losses[run] for run in runs if run.body_lr == rate),
    )


def body_runs(body: str) -> list[Settings]:
    return [
        Settings(body_lr=rate, body=body, **case)
        for rate in BODY_RATES[body]
        for case in BODY_CASES
    ]


def lr_grid(arm: str, losses: Losses) -> list[Settings]:
    """Returns the runs of a coarse grid of pairs."""
    pairs = itertools.product(*([rate_at(k) for k in ks] for ks in GRID))
    base = untuned({"arm": arm}, losses)
    return [dataclasses.replace(base, lr=lr, head_lr=head) for lr, head in pairs]


def mistuned(arm: str, losses: Losses) -> dict[Pair, Settings]:
    """Returns runs at the best pair of an arm times factors, by these factors."""
    best = tuned({"arm": arm}, losses)
    lr, head_lr = rates(best)
    factors = [pair for x in FACTORS for pair in ((x, 1.0), (1.0, x), (x, x))]
    return {
        (embed, head): dataclasses.replace(best, lr=embed * lr, head_lr=head * head_lr)
        for embed, head in factors
    }
