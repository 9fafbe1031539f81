"""From finished runs of the study to its rows and to differences between them."""

import dataclasses
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.common.intervals import Interval, interval
from benchmarks.study import stages
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Runs, Settings, losses_of
from benchmarks.study.stages import Case

COMPARED = ("seeds", "muon", "tied", "batch", "size", "length", "scale")
"""Stages that have Ember and both Adams in the same settings."""


class Row(NamedTuple):
    """One case of the study at its best learning rate."""

    name: str  # for `--row`
    case: Case
    settings: Settings  # of one of its runs
    losses: dict[int, float]  # by seed
    state_bytes: int  # of all tables

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values())

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.losses.values())

    @property
    def title(self) -> str:
        return title(self.settings.arm, self.settings.b2)


class Study:
    """The finished runs of a file, arranged by the stages of the study."""

    def __init__(self, runs: Runs):
        self.runs = runs
        self.losses = losses_of(runs)

    def row(self, stage: str, case: Case) -> Row | None:
        """Returns a row, or None where not all of its seeds are finished."""
        try:
            runs = stages.seeded(case, self.losses)
        except stages.WaitingFor:
            return None
        if not all(run in self.losses for run in runs):
            return None
        losses = {run.seed: self.losses[run] for run in runs}
        state_bytes = self.runs[runs[0]]["table_state_bytes"]
        return Row(stages.name_of(stage, case), case, runs[0], losses, state_bytes)

    def rows(self, stage: str) -> list[Row]:
        """Returns the finished rows of a stage."""
        rows = [self.row(stage, case) for case in stages.CASES[stage]]
        return [row for row in rows if row]

    def arm(self, name: str) -> Row | None:
        return self.row("seeds", {"arm": name})

    def adams(self, stage: str, case: Case) -> list[Row]:
        """Returns the finished rows of both Adams in the setting of a case."""
        changes = {k: v for k, v in case.items() if k not in ("arm", "b2")}
        rows = [self.row(stage, {"arm": arm} | changes) for arm in ("adam", "adam95")]
        return [row for row in rows if row]

    def against_adam(self, *only: str) -> Iterator[tuple[Row, Row]]:
        """Yields Ember (b2 0.999) and each Adam in every setting.

        Args:
          *only: stages; by default all that have such settings.
        """
        for stage in only or COMPARED:
            for case in stages.CASES[stage]:
                row = self.row(stage, case) if "b2" not in case else None
                if row and case["arm"] == "ember":
                    for adam in self.adams(stage, case):
                        yield row, adam


def difference(first: Row, second: Row) -> Interval:
    """Returns first - second, paired by seed."""
    return interval([first.losses[seed] - second.losses[seed] for seed in first.losses])


def interval_of_mean(row: Row) -> Interval:
    return interval(list(row.losses.values()))


def title(arm: str, b2: float | None) -> str:
    """Returns the name of an optimizer that readers see."""
    ambiguous = arm in ("adam", "adam95") or b2 != ARMS[arm].b2
    return f"{ARMS[arm].title}, b2 {b2:g}" if ambiguous else ARMS[arm].title


def setting(row: Row) -> str:
    """Returns how a row differs from the main setting, in words."""
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    if row.settings.config != defaults["config"]:
        return "124M parameters"
    words = {
        "body": "body Muon",
        "tied": "tied tables",
        "batch": f"{row.settings.batch} sequences of {row.settings.window}",
        "width": f"width {row.settings.width}",
        "tokens": f"{row.settings.tokens:,} tokens",
    }
    changed = [k for k in words if getattr(row.settings, k) != defaults[k]]
    return ", ".join(words[k] for k in changed) or "main setting"
