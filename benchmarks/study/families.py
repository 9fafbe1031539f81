"""The comparisons that count, as PLAN.md lists them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.common.intervals import Interval
from benchmarks.study import stages
from benchmarks.study.rows import Row, Study, difference
from benchmarks.study.shared import Case, WaitingFor

CANDIDATE, CONSTANT, *ADAMS = "ember_adafactor", "ember", "adam80", "adam"
ELSEWHERE = ("linux", "tied", "muon", "batch", "width", "length")
"""Stages that compare the same arms in other settings."""


class Comparison(NamedTuple):
    """The candidate against a rival in the same setting."""

    candidate: Row
    rival: Row
    difference: Interval  # candidate - rival, wide enough for its family


class Family(NamedTuple):
    """Comparisons whose intervals are right together with 95%."""

    heading: str
    n: int  # how many are planned
    finished: list[Comparison]


def settings() -> list[tuple[str, Case]]:
    """Returns the stage and the changes of every setting, the main one first."""
    cases = [(stage, case) for stage in ELSEWHERE for case in stages.CASES[stage]]
    found = [(stage, _changes(case)) for stage, case in cases]
    different = {stages.name_of(*place): place for place in found}
    return [("arms", {}), *different.values()]


def families(study: Study) -> dict[str, Family]:
    others = [case for case in stages.CASES["arms"] if _is_other(case)]
    others += stages.CASES["mixed"]
    return {
        "adam": _by_setting(
            study,
            "Against Adam: the better of (0.8, 0.95) and (0.9, 0.999) in its search",
            lambda *place: best_adam(study, *place),
        ),
        "constant": _by_setting(
            study,
            "Against Ember with b2 0.999",
            lambda stage, changes: study.row(stage, {"arm": CONSTANT} | changes),
        ),
        "arms": _family(
            "Against every other arm in the main setting",
            len(others),
            ((study.arm(CANDIDATE), study.row(_stage(case), case)) for case in others),
        ),
        "large": _family(
            "The larger model",
            len(ADAMS),
            (
                tuple(
                    study.row("large", stages.LARGE | {"arm": name})
                    for name in (CANDIDATE, arm)
                )
                for arm in ADAMS
            ),
        ),
    }


def best_adam(study: Study, stage: str, changes: Case) -> Row | None:
    """Returns the row of the Adam with the lower loss in its search."""
    cases = [{"arm": arm} | changes for arm in ADAMS]
    try:
        found = [study.losses[stages.tuned(case, study.losses)] for case in cases]
    except WaitingFor:
        return None
    return study.row(stage, cases[found.index(min(found))])


def _by_setting(
    study: Study, heading: str, rival: Callable[[str, Case], Row | None]
) -> Family:
    places = settings()
    pairs = (
        (study.row(stage, {"arm": CANDIDATE} | changes), rival(stage, changes))
        for stage, changes in places
    )
    return _family(heading, len(places), pairs)


def _family(heading: str, n: int, pairs: Iterator[tuple[Row | None, ...]]) -> Family:
    found = [
        Comparison(candidate, rival, difference(candidate, rival, n))
        for candidate, rival in pairs
        if candidate and rival
    ]
    return Family(heading, n, found)


def _is_other(case: Case) -> bool:
    return case not in ({"arm": CANDIDATE}, {"arm": CONSTANT})


def _stage(case: Case) -> str:
    return "mixed" if case in stages.CASES["mixed"] else "arms"


def _changes(case: Case) -> Case:
    return {key: value for key, value in case.items() if key != "arm"}
