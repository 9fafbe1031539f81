"""Rules that scale the best learning rates with width, tokens in a step and length.

A rule multiplies the best pair of the main setting by powers of these. Its cost in a
setting is the loss at the resulting pair minus the loss at the best pair, one seed.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.common.search import Pair
from benchmarks.study import stages
from benchmarks.study.settings import Losses, Settings
from benchmarks.study.stages import Case

# By stage: a setting's size relative to the main setting.
FACTORS: dict[str, Callable[[Settings], float]] = {
    "width": lambda run: run.width / Settings.width,
    "batch": lambda run: run.batch * run.window / (Settings.batch * Settings.window),
    "length": lambda run: run.tokens / Settings.tokens,
}

Rule = dict[str, Pair]
"""By stage: exponents of the factor for embedding and head."""

KEPT: Rule = dict.fromkeys(FACTORS, (0.0, 0.0))
COMMON: Rule = {"width": (-0.5, -0.5), "batch": (0.5, 0.5), "length": (0.0, 0.0)}


def rules(arm: str, losses: Losses) -> dict[str, Rule]:
    """Returns the rules by title."""
    return {
        "the same pair everywhere": KEPT,
        "commonly used": COMMON,
        "fitted to the best pairs": fitted(arm, losses),
    }


def fitted(arm: str, losses: Losses) -> Rule:
    """Returns the powers that fit the best pairs, rounded to halves."""
    main = stages.tuned({"arm": arm}, losses)
    found: Rule = {}
    for stage, factor in FACTORS.items():
        runs = [main, *(stages.tuned(case, losses) for case in cases(arm, stage))]
        logs = np.log([[factor(run), *stages.rates(run)] for run in runs])
        embed, head = np.polyfit(logs[:, 0], logs[:, 1:], 1)[0]
        found[stage] = round(2 * embed) / 2, round(2 * head) / 2
    return found


def cases(arm: str, stage: str) -> list[Case]:
    return [case for case in stages.CASES[stage] if case["arm"] == arm]


def scaled(rule: Rule, stage: str, case: Case, losses: Losses) -> Settings:
    """Returns the run of a case at the pair that a rule gives."""
    run = stages.untuned(case, losses)
    factor = FACTORS[stage](run)
    main = stages.rates(stages.tuned(stages.main(case), losses))
    lr, head_lr = (
        float(f"{rate * factor**power:.2g}")
        for rate, power in zip(main, rule[stage], strict=True)
    )
    return dataclasses.replace(run, lr=lr, head_lr=head_lr)


def runs(arm: str, losses: Losses) -> list[Settings]:
    return [
        scaled(rule, stage, case, losses)
        for rule in rules(arm, losses).values()
        for stage in FACTORS
        for case in cases(arm, stage)
    ]


def costs(rule: Rule, arm: str, losses: Losses) -> dict[Settings, float]:
    """Returns the cost of a rule in each setting, by the best run there."""
    found = {}
    for stage in FACTORS:
        for case in cases(arm, stage):
            best = stages.tuned(case, losses)
            found[best] = losses[scaled(rule, stage, case, losses)] - losses[best]
    return found
