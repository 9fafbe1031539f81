"""The table of losses by how often a token occurred in training."""

from collections.abc import Iterable

from benchmarks.common.tables import markdown
from benchmarks.study import practice_report
from benchmarks.study.comparisons import Study
from benchmarks.study.training import CLASSES

ENOUGH = 1000
"""Tokens of a class, over all seeds, for a mean loss that is worth showing."""


def by_class(study: Study) -> str:
    """Returns the loss on held-out tokens by their occurrences in training."""
    cells = []
    for _, row in practice_report.rows(study, "vocabulary"):
        by_seed = [run["held_out_by_class"] for run in study.runs_of(row)]
        means = map(mean_loss, zip(*by_seed, strict=True))
        cells.append([f"{row.settings.vocab:,}", row.title, *means])
    if not cells:
        return "Not measured yet."
    return markdown(["vocabulary", "tables", *CLASSES], cells, left=2)


def mean_loss(by_seed: Iterable[tuple[float | None, int]]) -> str:
    """Returns the mean over all tokens of a class; nothing for a few tokens."""
    found = [(loss, n) for loss, n in by_seed if loss is not None]
    total = sum(n for _, n in found)
    if total < ENOUGH:
        return ""
    return f"{sum(loss * n for loss, n in found) / total:.3f}"
