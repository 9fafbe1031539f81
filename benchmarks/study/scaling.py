"""How the best learning rates go with the width, the tokens in a step, and the length.

A rule multiplies the best pair of the main setting with powers of those. What a rule
costs in a setting is the loss at its pair minus that at the best one there, one seed.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.common.search import Pair
from benchmarks.study import shared, stages
from benchmarks.study.rows import Study, setting
from benchmarks.study.settings import Losses, Settings
from benchmarks.study.shared import Case, WaitingFor

STAGES = ("rule",)
ARMS = stages.RIVALS[:2]
# What a setting of a stage has more of than the main one, as a factor.
FACTORS = {
    "width": lambda run: run.width / Settings.width,
    "batch": lambda run: run.batch * run.window / (Settings.batch * Settings.window),
    "length": lambda run: run.tokens / Settings.tokens,
}


class Rule(NamedTuple):
    """Exponents of the factors of `FACTORS`, for the embedding and for the head."""

    title: str
    width: Pair
    batch: Pair
    length: Pair

    def exponents(self, stage: str) -> Pair:
        return getattr(self, stage)


class Cost(NamedTuple):
    """What a rule costs in every setting, by its name."""

    rule: Rule
    costs: dict[str, float]


KEPT = Rule("the same pair everywhere", (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
PRACTICE = Rule("as in practice", (-0.5, -0.5), (0.5, 0.5), (0.0, 0.0))


def fitted(arm: str, losses: Losses) -> Rule:
    """Returns the powers that fit the best pairs, rounded to halves.

    Raises:
      WaitingFor: a search is not finished.
    """
    main = stages.tuned({"arm": arm}, losses)
    found = {}
    for stage, factor in FACTORS.items():
        runs = [main, *(stages.tuned(case, losses) for case in cases(arm, stage))]
        logs = np.log([[factor(run), *stages.rates(run)] for run in runs])
        slopes = np.polyfit(logs[:, 0], logs[:, 1:], 1)[0]
        found[stage] = tuple(round(2 * slope) / 2 for slope in slopes)
    return Rule("fitted to the best pairs", **found)


def rules(arm: str, losses: Losses) -> list[Rule]:
    return [KEPT, PRACTICE, fitted(arm, losses)]


def cases(arm: str, stage: str) -> list[Case]:
    return [case for case in stages.CASES[stage] if case["arm"] == arm]


def by_rule(rule: Rule, stage: str, case: Case, losses: Losses) -> Settings:
    """Returns the run of a case at the pair of a rule."""
    run = stages.start(case, losses)
    factor = FACTORS[stage](run)
    main = stages.rates(stages.tuned(stages.main(case), losses))
    lr, head_lr = (
        float(f"{rate * factor**power:.2g}")
        for rate, power in zip(main, rule.exponents(stage), strict=True)
    )
    return dataclasses.replace(run, lr=lr, head_lr=head_lr)


def runs(arm: str, losses: Losses) -> list[Settings]:
    return [
        by_rule(rule, stage, case, losses)
        for rule in rules(arm, losses)
        for stage in FACTORS
        for case in cases(arm, stage)
    ]


def missing(stage: str, losses: Losses) -> Iterator[Settings]:
    """Returns the runs that can be done now and are not finished."""
    del stage
    jobs = [lambda arm=arm: runs(arm, losses) for arm in ARMS]
    return shared.unfinished(jobs, losses)


def costs(study: Study, arm: str) -> list[Cost]:
    """Returns what each rule costs an arm, nothing where runs are missing."""
    losses = study.losses
    try:
        if any(run not in losses for run in runs(arm, losses)):
            return []
        found = []
        for rule in rules(arm, losses):
            of_rule = {}
            for stage in FACTORS:
                for case in cases(arm, stage):
                    best = stages.tuned(case, losses)
                    loss = losses[by_rule(rule, stage, case, losses)]
                    of_rule[setting(best)] = loss - losses[best]
            found.append(Cost(rule, of_rule))
    except WaitingFor:
        return []
    return found


def mean(cost: Cost) -> float:
    return math.fsum(cost.costs.values()) / len(cost.costs)
