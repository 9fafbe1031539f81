"""Rows of the evidence from finished runs, and the comparisons that PLAN.md lists."""

import dataclasses
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.common.intervals import Interval
from benchmarks.common.intervals import difference as paired_difference
from benchmarks.common.store import Run
from benchmarks.study import stages
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Runs, Settings, losses_of
from benchmarks.study.stages import Case

CANDIDATE, CONSTANT, *ADAMS = "ember_adafactor", "ember", "adam80", "adam"
ELSEWHERE = ("linux", "tied", "muon", "batch", "width", "length")
"""Stages that compare the same arms in other settings."""
HEAD = ["tables", "rate of the embedding", "of the head", "loss"]
"""Titles of `cells_of`."""


class Row(NamedTuple):
    """One case of the study at its best learning rates."""

    name: str  # for `--row`
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
        """The optimizers of the tables: `embedding / head` if they differ."""
        arm, head_arm = self.settings.arm, self.settings.head_arm
        if (arm, head_arm) == ("adam80_995", "adam80_96"):
            return "Adam as in nanochat"
        return ARMS[arm].title + (f" / {ARMS[head_arm].title}" if head_arm else "")


class Study:
    """The finished runs of a file, by the stages of the study."""

    def __init__(self, runs: Runs):
        self.runs = runs
        self.losses = losses_of(runs)

    def row(self, stage: str, case: Case) -> Row:
        """Returns a row.

        Raises:
          Unfinished: not all of its runs are finished.
        """
        return self.row_of(
            stages.name_of(stage, case), stages.seeded(case, self.losses)
        )

    def row_of(self, name: str, runs: list[Settings]) -> Row:
        """Returns the row of runs that differ in their seeds."""
        losses = stages.require(runs, self.losses)
        return Row(
            name,
            runs[0],
            {run.seed: loss for run, loss in zip(runs, losses, strict=True)},
            self.runs[runs[0]]["table_state_bytes"],
        )

    def runs_of(self, row: Row) -> list[Run]:
        """Returns the records of a row's runs, one for each seed."""
        runs = [dataclasses.replace(row.settings, seed=seed) for seed in row.losses]
        return [self.runs[run] for run in runs]

    def rows(self, stage: str) -> list[Row]:
        return [self.row(stage, case) for case in stages.CASES[stage]]

    def arm(self, name: str) -> Row:
        """Returns the row of an arm in the main setting."""
        return self.row("arms", {"arm": name})


class Comparison(NamedTuple):
    """The candidate against a rival in the same setting."""

    candidate: Row
    rival: Row
    difference: Interval  # candidate - rival, wide enough for its family


def planned(study: Study) -> dict[str, list[Comparison]]:
    """Returns the comparisons that count, by family.

    All intervals of a family hold together with 95%.
    """
    settings = places()
    candidates = [study.row(x, {"arm": CANDIDATE} | changes) for x, changes in settings]
    constants = [study.row(x, {"arm": CONSTANT} | changes) for x, changes in settings]
    adams = [better_adam(study, stage, changes) for stage, changes in settings]
    main = candidates[0]
    skipped = main.settings, constants[0].settings
    arms = [row for row in study.rows("arms") if row.settings not in skipped]
    large, *large_adams = study.rows("large")
    return {
        "adam": family(zip(candidates, adams, strict=True)),
        "constant": family(zip(candidates, constants, strict=True)),
        "arms": family((main, row) for row in arms + study.rows("mixed")),
        "large": family((large, row) for row in large_adams),
    }


def places() -> list[tuple[str, Case]]:
    """Returns the stage and the changes of each setting, the main one first."""
    found = {("arms", ()): {}}
    for stage in ELSEWHERE:
        for case in stages.CASES[stage]:
            changes = {key: value for key, value in case.items() if key != "arm"}
            found[stage, tuple(changes.values())] = changes
    return [(stage, changes) for (stage, _), changes in found.items()]


def better_adam(study: Study, stage: str, changes: Case) -> Row:
    """Returns the row of the Adam with the lower loss in its search."""
    cases = [{"arm": arm} | changes for arm in ADAMS]
    best = min(cases, key=lambda case: study.losses[stages.tuned(case, study.losses)])
    return study.row(stage, best)


def family(pairs: Iterable[tuple[Row, Row]]) -> list[Comparison]:
    found = list(pairs)
    return [
        Comparison(candidate, rival, difference(candidate, rival, len(found)))
        for candidate, rival in found
    ]


def difference(first: Row, second: Row, n_comparisons: int = 1) -> Interval:
    """Returns first - second, paired by seed."""
    return paired_difference(
        list(first.losses.values()), list(second.losses.values()), n_comparisons
    )


def setting(run: Settings) -> str:
    """Describes the difference of a run from the main setting, in words."""
    if run.vocab:
        return f"{run.layers} layers, width {run.width}, vocabulary {run.vocab:,}"
    words = {
        "text": "natural English",
        "body": "body Muon",
        "tied": "tied tables",
        "batch": f"{run.batch} sequences of {run.window}",
        "width": f"width {run.width}",
        "tokens": f"{run.tokens:,} tokens",
    }
    changed = [key for key in words if getattr(run, key) != getattr(Settings, key)]
    return ", ".join(words[key] for key in changed) or "main setting"


def cells_of(row: Row) -> list[str]:
    """Returns title, learning rates and loss of a row."""
    lr, head_lr = row.settings.lr, row.settings.head_lr
    rates = [f"{lr:.2g}", "" if head_lr is None else f"{head_lr:.2g}"]
    return [row.title, *rates, f"{row.mean:.3f} ± {row.deviation:.3f}"]
