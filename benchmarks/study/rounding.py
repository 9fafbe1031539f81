"""Tables in bfloat16 without a float32 copy, beside tables in float32."""

from typing import NamedTuple

from benchmarks.common.intervals import Interval
from benchmarks.study import stages
from benchmarks.study.families import ADAMS, CANDIDATE
from benchmarks.study.rows import Row, Study, difference, setting

LENGTHS = ({}, {"tokens": stages.LENGTHS[-1]})
NAMES = {
    None: "float32",
    "nearest": "bfloat16, to the nearest",
    "stochastic": "bfloat16, stochastically",
}


class Rounded(NamedTuple):
    """A row and its loss beyond that of Ember on float32 tables."""

    setting: str
    tables: str
    row: Row
    cost: Interval


def found(study: Study) -> list[list[Rounded]]:
    """Returns the finished rows of each length, Ember on float32 tables first."""
    return [rows for rows in (_of_length(study, x) for x in LENGTHS) if rows]


def _of_length(study: Study, length: dict[str, int]) -> list[Rounded]:
    stage = "length" if length else "arms"
    ember = study.row(stage, {"arm": CANDIDATE} | length)
    if ember is None:
        return []
    adam = study.row(stage, {"arm": ADAMS[0]} | length)
    cases = [
        case for case in stages.CASES["rounding"] if ("tokens" in case) == bool(length)
    ]
    rows = [ember, adam, *(study.row("rounding", case) for case in cases)]
    return [
        Rounded(
            setting(ember.settings),
            f"{row.title}, {NAMES[row.settings.rounding]}",
            row,
            difference(row, ember),
        )
        for row in rows
        if row
    ]
