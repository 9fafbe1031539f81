"""Which learning rates are best where, and what others cost."""

import dataclasses
from typing import NamedTuple

from benchmarks.common.search import Pair
from benchmarks.study import stages
from benchmarks.study.families import settings
from benchmarks.study.rows import Study, setting
from benchmarks.study.shared import WaitingFor


class Kept(NamedTuple):
    """A setting in which the pair of the main setting was tried."""

    setting: str
    best: Pair  # embedding, head
    cost: float  # loss at the pair of the main setting minus that at the best, one seed


def kept_pairs(study: Study, arm: str) -> list[Kept]:
    """Returns what the best pair of the main setting costs in the others."""
    found = []
    for _, changes in settings():
        if "tied" in changes:
            continue
        case = {"arm": arm} | changes
        try:
            losses = stages.searched(case, study.losses)
            run = stages.tuned(case, study.losses)
            main = stages.rates(stages.tuned({"arm": arm}, study.losses))
        except WaitingFor:
            continue
        best = stages.rates(run)
        found.append(Kept(setting(run), best, losses[main] - losses[best]))
    return found


def costs_off(study: Study, arm: str) -> dict[Pair, float]:
    """Returns what it costs to miss the best pair, by the factors of both rates."""
    try:
        best = study.losses[stages.tuned({"arm": arm}, study.losses)]
        runs = stages.off(arm, study.losses)
    except WaitingFor:
        return {}
    found = {
        k: study.losses[run] - best for k, run in runs.items() if run in study.losses
    }
    return found if len(found) == len(runs) else {}


def plane(study: Study, arm: str) -> dict[Pair, float]:
    """Returns all losses of an arm in the main setting with the seed of the search."""
    base = stages.start({"arm": arm}, study.losses)
    return {
        stages.rates(run): loss
        for run, loss in study.losses.items()
        if run.head_lr is not None
        and dataclasses.replace(base, lr=run.lr, head_lr=run.head_lr) == run
    }
